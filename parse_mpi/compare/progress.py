"""What a person sees while launches run: a line for each that has ended, and on a terminal a bar below them."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts trials of one kind. Those that were finished before take no part in the estimate of what is left."""

    def __init__(self, what: str, total: int, at_once: int):
        self.total = total
        self.at_once = at_once
        self.count = 0
        self._launched: list[float] = []
        self._start = time.monotonic()
        self._console = Console(highlight=False, soft_wrap=True)
        left = TextColumn("{task.fields[left]}")
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), left)
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not sys.stdout.isatty())
        self._task = self._bar.add_task(what, total=total, left="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def skip(self, name: str, status: str, reason: str) -> None:
        """Nothing to launch: finished before, at work elsewhere, or damaged; the last two are worth a line."""
        self._count()
        if status != "finished":
            what = "another launch is at work on it" if status == "elsewhere" else "not launched"
            self._console.print(f"{self._place()} {escape(name)}: {what}")
        self._explain(reason)

    def done(self, name: str, status: str, reason: str, seconds: float) -> None:
        """A launch has ended."""
        self._launched.append(seconds)
        self._count()
        text = f"{self._place()} {escape(name)}: {status} in {seconds:.0f} s"
        text += f"; {clock(time.monotonic() - self._start)} elapsed"
        text += f", about {self._left()} left" if self.count < self.total else ""
        self._console.print(text)
        self._explain(reason)

    def _explain(self, reason: str) -> None:
        if reason:
            self._console.print("\n".join(f"    {escape(line)}" for line in reason.splitlines()), style="red")

    def _count(self) -> None:
        self.count += 1
        left = f"about {self._left()} left" if self._launched else ""
        self._bar.update(self._task, completed=self.count, left=left)

    def _place(self) -> str:
        return escape(f"[{self.count}/{self.total}]")

    def _left(self) -> str:
        """As long as those that were launched here took, on average."""
        mean_s = sum(self._launched) / len(self._launched)
        return clock(mean_s * (self.total - self.count) / min(self.at_once, max(self.total - self.count, 1)))


def clock(seconds: float) -> str:
    """A time to read: 0:07, 12:30, 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
