"""Launches side by side: so many at a time, each finished one told at once, and none left behind when told to stop."""

from __future__ import annotations

import math
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from parse_mpi.compare.launch import Launch, clean_environment
from parse_mpi.compare.ledger import STARTED, Ledger
from parse_mpi.compare.progress import Progress
from parse_mpi.compare.schema import Launches
from parse_mpi.compare.standing import Standing, failure, run_of, standing, validation_score
from parse_mpi.compare.template import Template
from parse_mpi.compare.trials import Trial, in_order
from parse_mpi.errors import EXIT_INTERRUPTED, EXIT_TO_BE_CONTINUED, ParseMpiError, StorageError
from parse_mpi.run.preemption import Deadline, find_deadline

LISTENED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Slurm's --signal sends the last one
POLL_S = 0.05
STOP_S = 120.0  # for launches to reach the end of a round and write a checkpoint


class StoppedError(ParseMpiError):
    """Ctrl-C, SIGTERM, SIGUSR1 or the end of the Slurm job: all launches have ended, and what they did is kept."""

    def __init__(self, why: str):
        super().__init__(f"{why}: all launches have ended; the same command goes on")
        self.exit_code = EXIT_INTERRUPTED if why == signal.SIGINT.name else EXIT_TO_BE_CONTINUED


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. elsewhere: another launch is at work on it."""

    trial: Trial
    status: Literal["finished", "failed", "elsewhere"]
    reason: str = ""


@dataclass
class _Running:
    trial: Trial
    token: str
    launch: Launch


class Pool:
    """Runs trials of one study directory."""

    def __init__(self, study_dir: Path, how: Launches):
        self.study_dir = study_dir
        self.how = how
        self.ledger = Ledger(study_dir / "ledger.csv")
        self._asked = 0  # how often it was told to stop
        self._why = ""
        self._deadline: Deadline | None = None
        self._template: Template | None = None

    def run(self, trials: Sequence[Trial], what: str) -> list[Outcome]:
        """Run what is not finished yet, in this order. what: the trials in a word, for the user.

        Raises StoppedError when told to stop, and StorageError where the study directory can't be written.
        """
        waiting, running, outcomes = deque(trials), list[_Running](), list[Outcome]()
        self._deadline = find_deadline(None, os.environ)
        if self._deadline:
            self._deadline.save_took(STOP_S / 2)  # it keeps twice as long free
        with self._listening(), Progress(what, len(trials), self.how.at_once) as progress:
            try:
                while (waiting or running) and not self._is_told_to_stop():
                    while waiting and len(running) < self.how.at_once:
                        outcome = self._begin(waiting.popleft(), running)
                        if outcome is not None:
                            outcomes.append(outcome)
                            progress.skip(outcome.trial.name, outcome.status, outcome.reason)
                    ended = [(job, code) for job in running if (code := job.launch.poll()) is not None]
                    for job, code in ended:
                        running.remove(job)
                        outcomes.append(self._end(job, code))
                        progress.done(job.trial.name, outcomes[-1].status, outcomes[-1].reason, job.launch.seconds)
                    if not ended:
                        time.sleep(POLL_S)
            finally:
                self._stop(running)
                self._close_template()
        if self._asked:
            raise StoppedError(self._why)
        return outcomes

    def _begin(self, trial: Trial, running: list[_Running]) -> Outcome | None:
        """Launch a trial; or say what it is where there is nothing to launch: others may have finished it meanwhile."""
        run = run_of(self.study_dir, trial)
        found = standing(run, trial)
        if found.what == "finished" or found.what == "elsewhere":
            return Outcome(trial, found.what)
        if found.what == "damaged":
            return Outcome(trial, "failed", found.reason)
        command = [
            sys.executable, "-m", "parse_mpi", "run", str(trial.base), "--out", str(run.path),
            "--time-limit", self.how.time_limit, *(["--fresh"] if found.what == "changed" else []),
        ]  # fmt: skip
        for override in in_order(trial.overrides):
            command += ["--set", override]
        log = self.study_dir / "logs" / trial.folder.with_name(f"{trial.name}.log")
        ranks = trial.ranks or self.how.ranks
        if ranks == 1 and self._template is None:
            self._template = Template(clean_environment(self.how.threads))
        launch = Launch(
            command, ranks, self.how.threads, self.how.limit_s, log, self._template if ranks == 1 else None,
            self.how.options,
        )  # fmt: skip
        running.append(_Running(trial, secrets.token_hex(4), launch))
        self.ledger.add(running[-1].token, trial, STARTED)
        return None

    def _end(self, job: _Running, code: int) -> Outcome:
        run, trial, score = run_of(self.study_dir, job.trial), job.trial, math.nan
        found = standing(run, trial)
        if found.what == "finished":
            try:
                score = validation_score(run)
            except StorageError as error:  # its metrics are damaged
                found = Standing("damaged", str(error))
        if found.what == "finished" or found.what == "elsewhere":
            outcome = Outcome(trial, found.what)
        else:
            outcome = Outcome(trial, "failed", f"exit code {code}: {found.reason or failure(run, job.launch.output())}")
        self.ledger.add(job.token, trial, outcome.status, job.launch.seconds, score)
        return outcome

    def _close_template(self) -> None:
        if self._template is not None:
            self._template.close()
            self._template = None

    def _is_told_to_stop(self) -> bool:
        if not self._asked and self._deadline and self._deadline.near():
            self._asked, self._why = 1, self._deadline.reason
        return self._asked > 0

    def _stop(self, running: Sequence[_Running]) -> None:
        """End all that still runs, with checkpoints; at once when asked a second time."""
        for job in running:
            job.launch.ask_to_stop()
        until = time.monotonic() + STOP_S
        for job in running:
            while job.launch.poll() is None and time.monotonic() < until and self._asked < 2:
                time.sleep(POLL_S)
            job.launch.kill()
        for job in running:
            self.ledger.add(job.token, job.trial, "stopped", job.launch.seconds)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM and SIGUSR1 ask for a stop, until the end of this context."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked, self._why = self._asked + 1, self._why or signal.Signals(number).name

        before = {number: signal.signal(number, ask) for number in LISTENED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
