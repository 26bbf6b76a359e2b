"""Requests to stop: signals raise a flag, and the ranks agree on it at the next round boundary.

One rank alone must never act on a signal: the others would wait for it for ever.
"""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Remembers which signal asked this process to stop; SIGINT (Ctrl-C) after that raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.reason = ""

    def listen(self) -> None:
        """Install the handlers."""
        for number in SIGNALS:
            signal.signal(number, self._remember)

    @property
    def raised(self) -> bool:
        return bool(self.reason)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.raised:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
