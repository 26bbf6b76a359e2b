"""Real runs on a file system that fills up while they train: nothing that was saved is lost, nor anything else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launch import Outcome, run
from real_runs import differences, result, train
from small_jobs import write_job

from parse_mpi.errors import StorageError
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.rundir import RunDirectory

# The real command; before round `first` a file takes up all space that is left, and before round `last` it goes.
FILLING = """
import os, sys
from parse_mpi.cli import main
from parse_mpi.run.trainer import Trainer

filler, first, last = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
train_round = Trainer.train_round

def fill():
    with open(filler, "wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2

def disturbed(self, round_index, *rest):
    if self.world.rank == 0 and round_index + 1 == first:
        fill()
    if self.world.rank == 0 and round_index + 1 == last:
        os.unlink(filler)
    return train_round(self, round_index, *rest)

Trainer.train_round = disturbed
sys.exit(main())
"""
RANKS, ROUNDS, FULL_FROM, FREE_FROM, NEVER = 2, 14, 5, 10, 0
CHANGES = {"mode": "exact", "checkpoint": {"every": 1}, "evaluate": {"every": 4}, "train": {"rounds": ROUNDS}}


@pytest.fixture
def disk(small_file_system: Callable[[int], Path]) -> Path:
    return small_file_system(12)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(write_job(folder, CHANGES), folder / "run", 1)
    return result(folder / "run")


def train_and_fill(job: Path, out: Path, logs: Path, last: int) -> Outcome:
    filling = [str(out.parent / "filler"), str(FULL_FROM), str(last)]
    return run(RANKS, [sys.executable, "-c", FILLING, *filling, "run", str(job), "--out", str(out)], logs, 60.0)


def test_a_disk_that_is_full_for_a_while_costs_only_the_checkpoints_of_that_time(
    tmp_path: Path, disk: Path, undisturbed: dict[str, np.ndarray]
) -> None:
    job, out = write_job(tmp_path, CHANGES), disk / "run"
    outcome = train_and_fill(job, out, tmp_path / "logs", FREE_FROM)
    assert outcome.code == 0, outcome
    said = outcome.logs[0]
    for round_index in range(FULL_FROM + 1, FREE_FROM - 1):  # the saves before and after may see the change
        assert f"round {round_index}: NO CHECKPOINT WRITTEN, training goes on from memory: " in said
    assert "No space left on device. Free space on that file system" in said
    assert f"round {ROUNDS}: NO CHECKPOINT" not in said
    np.testing.assert_array_equal(read_metrics(out)["rounds/round"], np.arange(1, ROUNDS + 1))
    assert differences(undisturbed, result(out)) == []


def test_a_disk_that_stays_full_ends_the_run_and_the_same_command_finishes_it(
    tmp_path: Path, disk: Path, undisturbed: dict[str, np.ndarray]
) -> None:
    job, out = write_job(tmp_path, CHANGES), disk / "run"
    outcome = train_and_fill(job, out, tmp_path / "logs", NEVER)
    assert outcome.code == StorageError.exit_code, outcome
    assert "No space left on device. Free space on that file system" in outcome.logs[0]
    state = RunDirectory(out).read_state()
    assert state is not None
    assert state.round in (FULL_FROM - 2, FULL_FROM - 1)
    assert state.status == "running"  # there is no room to say otherwise, and nobody owns the directory any more
    (disk / "filler").unlink()
    train(job, out, 3)
    assert differences(undisturbed, result(out)) == []
