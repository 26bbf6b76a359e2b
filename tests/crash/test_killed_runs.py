"""kill -9 of all ranks while they save: what was committed stays, and the resumed run ends as if nothing happened."""

import os
import signal
import sys

import pytest
from launch import Launch
from real_runs import differences, result, train
from small_jobs import write_job

from parse_mpi.storage.checkpoint import load_newest

# The real command, whose saves pause with their shard written, so that a kill while one is seen falls into it.
SLOW_SAVES = """
import sys, time
import parse_mpi.storage.checkpoint as checkpoint
from parse_mpi.cli import main

write_shard = checkpoint.write_shard

def slow(*arguments):
    report = write_shard(*arguments)
    time.sleep(0.3)
    return report

checkpoint.write_shard = slow
sys.exit(main())
"""
CHANGES = {"mode": "exact", "checkpoint": {"every": 1}, "train": {"rounds": 12}}


def kill_while_saving(job, out, ranks, logs, saves):
    """Start the run and kill every rank as soon as a save beyond the `saves`-th newest is under way."""
    checkpoints = out / "checkpoints"

    def saving():
        begun = sorted(int(path.name[7:13]) for path in checkpoints.glob(".round-*.tmp"))
        return begun and begun[-1] >= saves and any((checkpoints / f".round-{begun[-1]:06d}.tmp").glob("*"))

    with Launch(ranks, [sys.executable, "-c", SLOW_SAVES, "run", str(job), "--out", str(out)], logs) as launch:
        launch.wait_until(saving, 60)
        for pid in launch.pids():
            os.kill(pid, signal.SIGKILL)
        assert launch.wait(30).code != 0


@pytest.mark.parametrize("ranks", [(2, 3, 1), (1, 2, 2)])
def test_all_ranks_killed_in_mid_save_twice_then_resumed(tmp_path, ranks):
    job, out = write_job(tmp_path, CHANGES), tmp_path / "run"
    train(job, tmp_path / "whole", 1)
    for attempt, saves in enumerate((3, 7)):
        kill_while_saving(job, out, ranks[attempt], tmp_path / f"killed-{attempt}", saves)
        checkpoint, rejected = load_newest(out)
        assert rejected == []
        assert checkpoint is not None
        assert checkpoint.round_index >= saves - 1
    train(job, out, ranks[2])
    assert differences(result(tmp_path / "whole"), result(out)) == []
    assert not list((out / "checkpoints").glob(".*"))
