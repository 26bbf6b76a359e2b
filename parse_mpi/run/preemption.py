"""Requests to stop: a signal or the end of the allotted time raises a flag; the ranks agree at the next round boundary.

One rank alone must never act on a request: the others would wait for it for ever. Python runs its handlers in the main
thread, and not while that is inside MPI. So every signal wakes a thread through a pipe (signal.set_wakeup_fd).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

from parse_mpi.errors import EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PATIENCE_S = 1.0  # for the main thread to end an interrupted launch itself, with the terminal left tidy
RESERVE_S = 30.0  # what Deadline keeps free beside what it has measured ...
RESERVE_SHARE = 0.1  # ... and at most this share of all the time there is
WHAT_FOLLOWS = "all ranks stop at the next round boundary, with a checkpoint (Ctrl-C: at once, without)"


class Deadline:
    """The end of the time that a launch has; the system's clock may be set meanwhile.

    It is near when there may be too little left for two more rounds, each with an evaluation and as long as the longest
    so far, for two checkpoints as slow as the slowest so far, and for the reserve: the next chance to stop comes a
    round later.
    """

    def __init__(self, limit_s: float, reason: str, clock: Callable[[], float] = time.monotonic):
        self.reason = reason
        self._clock = clock
        self._end = clock() + limit_s
        self._reserve_s = min(RESERVE_S, RESERVE_SHARE * limit_s)
        self._asked_at: float | None = None
        self._round_s = self._save_s = 0.0

    def save_took(self, seconds: float) -> None:
        """How long writing a checkpoint took, which need not be part of a round."""
        self._save_s = max(self._save_s, seconds)

    def near(self) -> bool:
        """Whether to stop after this round. To be asked once a round: that is how the length of rounds is known."""
        now = self._clock()
        if self._asked_at is not None:
            self._round_s = max(self._round_s, now - self._asked_at)
        self._asked_at = now
        return self._end - now < 2 * (self._round_s + self._save_s) + self._reserve_s


def seconds_of(text: str) -> int:
    """A time limit as Slurm writes them, in seconds. Raises ValueError where it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    if not match:
        raise ValueError(f"{text!r} is not a time; write MM, MM:SS, HH:MM:SS or D-HH[:MM[:SS]]")
    days, numbers = match[1], match[2].split(":")
    units = (3600, 60, 1) if days or len(numbers) == 3 else (60, 1)
    limit_s = int(days or 0) * 86_400 + sum(int(n) * unit for n, unit in zip(numbers, units, strict=False))
    if not limit_s:
        raise ValueError("a limit of no time at all")
    return limit_s


def find_deadline(limit_s: int | None, environment: Mapping[str, str]) -> Deadline | None:
    """`limit_s` from now; None: the end of the Slurm job that this is part of; without one there is no deadline."""
    if limit_s is not None:
        minutes, seconds = divmod(limit_s, 60)
        return Deadline(limit_s, f"time limit of {minutes // 60:02}:{minutes % 60:02}:{seconds:02}")
    end = environment.get("SLURM_JOB_END_TIME", "")
    left_s = int(end) - time.time() if end.isdecimal() else 0.0
    return Deadline(left_s, "time limit of the Slurm job") if left_s > 0 else None  # one that is over is another job's


class StopRequest:
    """Whether this process was asked to stop, and by what. Without `listen` only a deadline asks.

    rank: to be named in the reason. say: gets a line about the first signal, from another thread. end_launch: ends all
    ranks; called from another thread when SIGINT (Ctrl-C) follows another request, and the main thread is stuck.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline
        self.rank = 0
        self.say: Callable[[str], None] = _print_error
        self.end_launch: Callable[[], object] = lambda: None
        self._signal: signal.Signals | None = None
        self._asked = ""
        self._late = False
        self._interrupts = False
        self._main_thread = 0

    @property
    def reason(self) -> str:
        """The first request, or ""."""
        if self._late and self.deadline:
            return self.deadline.reason
        return f"{self._signal.name} on rank {self.rank}" if self._signal else self._asked

    @property
    def raised(self) -> bool:
        """Whether to stop after this round; to be read once a round, see Deadline.near."""
        if self._signal is None and self.deadline and self.deadline.near():
            self._late = True
        return bool(self.reason)

    def ask(self, reason: str) -> None:
        """Ask for it, from whichever thread."""
        self._asked = reason

    def save_took(self, seconds: float) -> None:
        """How long writing a checkpoint took: the deadline keeps that free."""
        if self.deadline:
            self.deadline.save_took(seconds)

    def listen(self) -> None:
        """Heed signals from now on; to be called from the main thread."""
        self._main_thread = threading.get_ident()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in SIGNALS:
            signal.signal(number, self._in_main_thread)
        threading.Thread(target=self._heed, args=(reader,), name="signals", daemon=True).start()

    def ignore(self) -> None:
        """Nothing is left to stop. A signal must not change the exit code while the interpreter and MPI shut down."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _heed(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number == signal.SIGINT and self.reason:
                    self._interrupt()
                elif number in SIGNALS and not self.reason:
                    self._signal = signal.Signals(number)
                    with suppress(OSError):  # nobody reads standard error any more
                        self.say(f"{self._signal.name} received: {WHAT_FOLLOWS}")

    def _interrupt(self) -> None:
        """End the launch at once: by KeyboardInterrupt, and from here when the main thread doesn't get to it."""
        self._interrupts = True
        signal.pthread_kill(self._main_thread, signal.SIGINT)  # also ends what it waits for in the kernel
        time.sleep(PATIENCE_S)
        try:
            self.end_launch()
        finally:
            os._exit(EXIT_INTERRUPTED)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if self._interrupts:
            self._interrupts = False  # once: a second one would interrupt the clearing up after the first
            raise KeyboardInterrupt


def _print_error(text: str) -> None:
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # in one piece: the main thread may be printing, too
