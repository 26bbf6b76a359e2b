"""What a person sees of a run: a bar on a terminal, lines in a log, warnings that can't be missed.

Rank 0 speaks to the console; every rank writes its own log/rank-RRRR.log.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOBase
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from parse_mpi.errors import counted
from parse_mpi.plan import Plan
from parse_mpi.run.summary import accuracy_table, cost_lines, final_lines, width_lines
from parse_mpi.run.trainer import RoundDone
from parse_mpi.storage.metrics import read_metrics

LOG_WIDTH = 160  # of a table that is not printed on a terminal


class Display:
    """The voice of one rank; only rank 0's is heard on the console."""

    def __init__(self, rank: int, log_dir: Path, plan: Plan):
        self.plan = plan
        self.rank = rank
        terminal = sys.stdout.isatty()
        width = None if terminal else LOG_WIDTH
        self.console = Console(file=cast(TextIO, _Output(sys.stdout)), quiet=rank != 0, highlight=False, width=width)
        self._bar = self._make_bar() if terminal and rank == 0 else None
        self._task = TaskID(0)
        self._since = time.perf_counter(), 0
        self._log = logging.getLogger(f"parse_mpi.rank-{rank:04d}")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        for earlier in self._log.handlers:  # of a run before this one in the same process
            earlier.close()
        self._log.handlers = [_LogFile(log_dir / f"rank-{rank:04d}.log")]

    def start(self, seats: Sequence[str], warnings: Sequence[str], first_round: int, run_dir: Path) -> None:
        """Say what is about to run, and where."""
        job, plan = self.plan.job, self.plan
        held = Counter(agent.kind or "away" for agent in plan.at(max(first_round - 1, 0)).agents)
        kinds = ", ".join(f"{count} {kind}" for kind, count in held.items())
        agents, ranks = counted(len(plan.agents), "agent"), counted(plan.ranks, "rank")
        self.say(f"{job.name}: {job.method.name}, {agents} ({kinds}) on {ranks}, mode {job.mode}")
        for line in seats:
            self.say(f"  {line}")
        for warning in warnings:
            self.warn(warning)
        begin = f"resuming after round {first_round}" if first_round else "starting"
        self.say(f"  {begin}, {job.train.rounds} rounds, in {run_dir}")
        for what in plan.what if first_round == 0 else ():
            self.say(f"round 0: {what}")
        self._since = time.perf_counter(), first_round
        if self._bar is not None:
            self._task = self._bar.add_task(job.name, total=job.train.rounds, completed=first_round, shown="")
            self._bar.start()

    def progress(self, made: RoundDone) -> None:
        """After every round: the bar moves; a log gets a line when agents were evaluated."""
        if made.evaluated:
            self._line(made.round_index, *made.evaluated)
        if self._bar is not None:
            self._bar.update(self._task, completed=made.round_index)

    def say(self, text: str) -> None:
        """A line for the user and for the log."""
        self.console.print(text, markup=False, soft_wrap=True)
        self._log.info(text)

    def note(self, text: str) -> None:
        """A line for the log alone."""
        self._log.info(text)

    def warn(self, text: str) -> None:
        """A line that can't be missed."""
        self.console.print(f"WARNING: {text}", style="bold yellow", markup=False, soft_wrap=True)
        self._log.warning(text)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def result(self, run_dir: Path) -> None:
        """The table at the end."""
        if self.rank != 0:
            return
        metrics = read_metrics(run_dir)
        self.console.print()
        self.console.print(accuracy_table(metrics))
        for line in (*final_lines(metrics), *width_lines(metrics), *cost_lines(metrics)):
            self.say(line)

    def _line(self, done: int, loss: float, accuracy: float) -> None:
        now, (then, since_round) = time.perf_counter(), self._since
        pace = 1e3 * (now - then) / max(1, done - since_round)
        self._since = now, done
        shown = f"loss {loss:.4f}  {self.plan.job.evaluate.told} accuracy {accuracy:.4f}"
        text = f"round {done:>5}/{self.plan.job.train.rounds}  {shown}  {pace:.1f} ms a round"
        self._log.info(text)
        if self._bar is None:
            self.console.print(text, markup=False, soft_wrap=True)
        else:
            self._bar.update(self._task, shown=shown)

    def _make_bar(self) -> Bar:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        return Bar(*columns, *times, TextColumn("{task.fields[shown]}"), console=self.console)


class _Output(TextIOBase):
    """A stream that a run does not depend on: what a closed pipe or a full disk does not take is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


class _LogFile(logging.FileHandler):
    """A log that never gets in the way: nothing before its folder is there, and one line when it can't be written."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if Path(self.baseFilename).parent.is_dir():
                super().emit(record)
        except OSError:  # it can't be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            with suppress(OSError):
                print(f"WARNING: {self.baseFilename} can't be written: {sys.exc_info()[1]}", file=sys.stderr)
        self._failed = True
