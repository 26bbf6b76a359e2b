"""Inside ranks: a run with events has the same bits after every round on any number of ranks, also when restarted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from event_cases import CASES, ROUNDS
from mpi4py import MPI
from small_jobs import Quiet, saved, write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.run.session import build_trainer
from parse_mpi.run.snapshot import Snapshot
from parse_mpi.run.trainer import Trainer
from parse_mpi.storage.checkpoint import open_checkpoint
from parse_mpi.storage.saver import Saver

WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)
AFTER = 2  # rounds that a run which was started again is followed

pytestmark = pytest.mark.mpi


def one_round(trainer: Trainer, done: int) -> None:
    """The round after `done` finished ones, as `Trainer.train` runs it."""
    trainer.enter_era(done)
    trainer.train_round(done)
    trainer._reweigh(done + 1)


State = dict[str, dict[int, bytes]]


def state(trainer: Trainer) -> State:
    """Everything that agents remember: array -> agent -> bytes of its row."""
    return {
        array.name: {int(i): row.tobytes() for i, row in zip(array.agents, array.values, strict=True)}
        for array in Snapshot(trainer.now.group).take()
    }


def differing(some: State, whole: State) -> list[tuple[str, int]]:
    """What the agents of this rank remember otherwise than the same agents of all."""
    return [(name, i) for name, rows in some.items() for i, row in rows.items() if whole[name].get(i) != row]


@pytest.mark.parametrize("case", CASES)
def test_every_round_and_every_restart_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    jobfile = load_job(write_job(tmp_path, CASES[case]))
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    plans = {world: make_plan(jobfile, dataset, world.size) for world in (WORLD, ALONE)}
    shared = Path(WORLD.broadcast_json(str(tmp_path)))
    folders = {WORLD: shared / "all", ALONE: tmp_path / "one"}
    if WORLD.size == 4:
        assert any(not era.agents_on(3) for era in plans[WORLD].eras)

    def start(world: World, done: int) -> Trainer:
        folders[world].mkdir(exist_ok=True)
        saver = Saver(world, folders[world], keep=ROUNDS)
        return build_trainer(world, plans[world], dataset, saver, torch.device("cpu"), Quiet(), done)

    after = {}
    together, alone = start(WORLD, 0), start(ALONE, 0)
    for done in range(ROUNDS):
        for trainer in (together, alone):
            one_round(trainer, done)
            saved(trainer, done + 1)
        after[done + 1] = state(alone)
        assert differing(state(together), after[done + 1]) == [], f"round {done + 1}"
    together.close()
    alone.close()
    for done in range(1, ROUNDS):  # by turns on all ranks from what one has saved, and the other way round
        world, written = ((WORLD, shared / "one"), (ALONE, shared / "all"))[(done + list(CASES).index(case)) % 2]
        again = start(world, done)
        again.restore(open_checkpoint(written, done))
        for more in range(done, min(done + AFTER, ROUNDS)):
            one_round(again, more)
            assert differing(state(again), after[more + 1]) == [], f"round {more + 1} after a restart at {done}"
        again.close()
