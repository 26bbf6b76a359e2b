"""Where a launch begins: at round 0 of a new run, or after the newest checkpoint that can be trusted.

Nothing starts over unasked: whatever stands in the way of going on is an error that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from parse_mpi.errors import JobError, ParseMpiError, StorageError
from parse_mpi.job import Hdf5Source, Job
from parse_mpi.jobfile import changed_keys, dump_job, load_job
from parse_mpi.plan import Plan
from parse_mpi.run.display import Display
from parse_mpi.run.preemption import StopRequest
from parse_mpi.storage.checkpoint import checkpoints_dir, load_newest, rounds_in
from parse_mpi.storage.metrics import require_rounds, segments_and_tables
from parse_mpi.storage.owner import Owner
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.storage.write import storage_errors, write_text

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

START_OVER = "or start over with --fresh (the old run is kept aside)"


@contextmanager
def owned(world: World, run: RunDirectory, stop: StopRequest, display: Display) -> Iterator[Owner | None]:
    """Make the run directory, where it is not there, and let this launch own it meanwhile; rank 0 gets the owner.

    A launch that loses the directory is asked to stop. Raises StorageError on every rank when another launch is at
    work there.
    """
    owner = None
    with _told_to_all(world):
        if world.rank == 0:
            run.make()
            owner = Owner.claim(run, display.say, display.warn, on_lost=stop.ask)
    try:
        yield owner
    finally:
        if owner is not None:
            owner.release()


def first_round(world: World, owner: Owner | None, plan: Plan, fresh: bool, display: Display) -> int:
    """Check the run directory on rank 0, its owner; the number of finished rounds to go on from, on every rank.

    Raises StorageError on every rank when the directory holds something that this job can't go on from.
    """
    done = 0
    with _told_to_all(world):
        if owner is not None:
            done = _begin(owner, plan, fresh, display)
    return int(world.broadcast_json(done))


def _begin(owner: Owner, plan: Plan, fresh: bool, display: Display) -> int:
    run = owner.run
    if fresh and (moved := run.fresh()):
        owner.move_in(moved)
        display.say(f"the earlier run now lies in {moved}")
    done = 0
    if run.exists():
        done = _resume(run, plan, display)
    else:
        _refuse_orphans(run)
    run.create()
    write_text(run.job_path, dump_job(plan.job))
    return done


@contextmanager
def _told_to_all(world: World) -> Iterator[None]:
    """What rank 0 raises inside for the user to mend is raised on every rank, as a StorageError."""
    failure = ""
    try:
        yield
    except ParseMpiError as error:
        failure = str(error)
    if failure := world.broadcast_json(failure):
        raise StorageError(failure)


def _refuse_orphans(run: RunDirectory) -> None:
    """A new run would replace, file by file, what is left of one whose job.yaml is gone."""
    with storage_errors(run.path, "can't be read"):
        rounds = rounds_in(checkpoints_dir(run.path))
    if rounds or segments_and_tables(run.path):
        raise StorageError(
            f"{run.path}: holds checkpoints or metrics of a run, and no job.yaml. "
            f"Put it back, choose another --out, {START_OVER}."
        )


def _resume(run: RunDirectory, plan: Plan, display: Display) -> int:
    """Finished rounds of the run that lies here."""
    try:
        stored = _stored_job(run.job_path, plan.job)
    except JobError as error:
        raise StorageError(
            f"{run.path}: its job.yaml can't be read as the job that was started there. {error}\n"
            f"Put it back as it was, choose another --out, {START_OVER}."
        ) from error
    _refuse_another_job(run.path, stored, plan.job)
    checkpoint, rejections = load_newest(run.path, lambda done: require_rounds(run.path, done))
    for rejection in rejections:
        display.warn(f"checkpoint {rejection}")
    state = run.read_state()
    if checkpoint is None:
        if rejections:
            raise StorageError(
                f"{run.path}: none of {len(rejections)} checkpoints can be trusted; starting at round 0 would lose "
                f"what was learnt. Restore one from a backup, {START_OVER}."
            )
        if state is not None and state.round > 0:
            raise StorageError(
                f"{run.path}: state.json names a checkpoint of round {state.round}, and checkpoints/ holds none. "
                f"Put it back, {START_OVER}."
            )
        return 0
    if checkpoint.header.get("job_digest") != plan.digest:
        raise StorageError(
            f"{checkpoint.path} was trained on other data than data.source holds and data.partition deals now.\n"
            f"Bring the data back, choose another --out, {START_OVER}."
        )
    if checkpoint.round_index > plan.job.train.rounds:
        raise StorageError(
            f"{run.path} has done {checkpoint.round_index} rounds already, more than train.rounds: "
            f"{plan.job.train.rounds}. Raise it, choose another --out, {START_OVER}."
        )
    return checkpoint.round_index


def _stored_job(path: Path, job: Job) -> Job:
    """The job that the run was started with; files that have moved since are where the given job says."""
    files = {"data.partition.file": job.data.partition.file}
    if isinstance(job.data.source, Hdf5Source):
        files["data.source.hdf5"] = job.data.source.hdf5
    try:
        return load_job(path).job
    except JobError:
        if moved := [f"{key}={json.dumps(name)}" for key, name in files.items() if name is not None]:
            return load_job(path, moved).job
        raise


def _refuse_another_job(run_dir: Path, stored: Job, given: Job) -> None:
    if changed := changed_keys(stored, given):
        listed = "\n  ".join(changed)
        raise StorageError(
            f"{run_dir} holds a run of another job; changed:\n  {listed}\n"
            f"Choose another --out, take the changes back, {START_OVER}."
        )
