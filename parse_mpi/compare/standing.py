"""How a trial stands: what its run directory says, whoever made it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from parse_mpi.compare.trials import Trial
from parse_mpi.errors import JobError, NonFiniteError, StorageError
from parse_mpi.job import Hdf5Source, Job
from parse_mpi.jobfile import load_job
from parse_mpi.run.summary import evaluation
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.owner import WATCH_S, look
from parse_mpi.storage.rundir import RunDirectory

LINES_TOLD = 5  # of a failed launch's output


class Standing(NamedTuple):
    """How a trial stands. reason: why it failed, or what is damaged.

    finished: nothing to do. elsewhere: another launch is at work there. changed: its job is another by now. open: not
    begun, or to be continued. failed: another launch may get further. diverged: training gave values that are not
    finite, as it would again. damaged: its directory can't be read, and a person has to look.
    """

    what: Literal["finished", "elsewhere", "changed", "open", "failed", "diverged", "damaged"]
    reason: str = ""

    @property
    def has_failed(self) -> bool:
        return self.what in ("failed", "diverged", "damaged")


def standing(run: RunDirectory, trial: Trial) -> Standing:
    """What the run directory of a trial says, whoever made it."""
    try:
        return _standing(run, trial)
    except StorageError as error:
        return Standing("damaged", str(error))


def _standing(run: RunDirectory, trial: Trial) -> Standing:
    owner = look(run)
    if owner is not None and (owner.verdict == "alive" or (owner.verdict == "unknown" and owner.age_s < WATCH_S)):
        return Standing("elsewhere")
    if not run.exists():
        return Standing("open")
    recorded = recorded_job(run, trial)
    if recorded is None or not trial.same_as(recorded):
        return Standing("changed")
    state = run.read_state()
    if state is not None and state.status == "failed":
        has_diverged = state.exit_code == NonFiniteError.exit_code
        return Standing("diverged" if has_diverged else "failed", failure(run, ""))
    return Standing("finished" if state is not None and state.status == "finished" else "open")


def is_finished(study_dir: Path, trial: Trial) -> bool:
    """Whether there is nothing to do for a trial but to read what it measured."""
    return standing(run_of(study_dir, trial), trial).what == "finished"


def recorded_job(run: RunDirectory, trial: Trial) -> Job | None:
    """The job that was run, its data being where they are now; None where it is no job of this version."""
    source, file = trial.job.data.source, trial.job.data.partition.file
    moved = [f"data.source.hdf5={json.dumps(source.hdf5)}"] if isinstance(source, Hdf5Source) else []
    moved += [f"data.partition.file={json.dumps(file)}"] if file else []
    try:
        return load_job(run.job_path, moved).job
    except JobError:
        return None


def failure(run: RunDirectory, output: str) -> str:
    """Why a launch did not get to the end: as its state says, otherwise the end of what it wrote."""
    try:
        state = run.read_state()
    except StorageError as error:
        return str(error)
    if state is not None and state.status in ("failed", "stopped") and state.reason:
        where = f" at round {state.round} of {state.rounds}" if state.status == "stopped" else ""
        return f"{state.status}{where}: {state.reason}"
    return "\n".join([line for line in output.splitlines() if line.strip()][-LINES_TOLD:]) or "it wrote nothing"


def validation_score(run: RunDirectory) -> float:
    """Mean ensemble accuracy on validation over all agents after the last round, which is what tables compare on test.

    nan for runs without validation samples.
    """
    of_agents = evaluation(read_metrics(run.path), -1, "validation").of(None, "ensemble")
    return float(of_agents.mean()) if len(of_agents) else math.nan


def run_of(study_dir: Path, trial: Trial) -> RunDirectory:
    return RunDirectory(study_dir / trial.folder)
