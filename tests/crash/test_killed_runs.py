"""kill -9 of real runs: what was committed stays, and the run that is resumed ends as if nothing had happened.

At moments chosen to fall into a save, and at random ones; all ranks, or one of them; resumed on any number of ranks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import Launch
from real_runs import command, differences, result, train
from small_jobs import write_job

from parse_mpi.storage.checkpoint import load_newest

# The real command, whose saves pause with their shard written, so that a kill while one is seen falls into it.
SLOW_SAVES = """
import sys, time
import parse_mpi.storage.saver as saver
from parse_mpi.cli import main

write_part = saver.write_part

def slow(*arguments):
    report = write_part(*arguments)
    time.sleep(0.3)
    return report

saver.write_part = slow
sys.exit(main())
"""
EVERY_ROUND = {"mode": "exact", "checkpoint": {"every": 1}, "train": {"rounds": 12}}
OFTEN = {"mode": "exact", "checkpoint": {"every": 2}, "evaluate": {"every": 3}, "train": {"rounds": 40}}


def kill_while_saving(job, out, ranks, logs, saves):
    """Start the run and kill every rank as soon as a save beyond the `saves`-th newest is under way."""
    checkpoints = out / "checkpoints"

    def saving():
        begun = [path for path in checkpoints.glob(".round-*.tmp") if int(path.name[7:13]) >= saves]
        return any(shard for path in begun for shard in path.glob("shard-*.h5"))

    with Launch(ranks, [sys.executable, "-c", SLOW_SAVES, "run", str(job), "--out", str(out)], logs) as launch:
        launch.wait_until(saving, 60)
        for pid in launch.pids():
            os.kill(pid, signal.SIGKILL)
        assert launch.wait(30).code != 0


@pytest.mark.parametrize("ranks", [(2, 3, 1), (1, 2, 2)])
def test_all_ranks_killed_in_mid_save_twice_then_resumed(tmp_path, ranks):
    job, out = write_job(tmp_path, EVERY_ROUND), tmp_path / "run"
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


# -- random moments ---------------------------------------------------------------------------------------------------


def killed_at_random(job: Path, out: Path, logs: Path, draw: np.random.Generator) -> tuple[str, int]:
    """Launch the run and kill it at a random moment. Returns who was killed, "" where it had ended, and the round kept.

    One time in five the moment is counted from the start of the processes, otherwise from the start of training.
    """
    ranks = int(draw.integers(1, 5))
    early, delay_s = draw.random() < 0.2, draw.uniform(0.0, 1.2)
    victims = range(ranks) if draw.random() < 0.5 else [int(draw.integers(ranks))]
    stamp = modified(out / "provenance.yaml")
    with Launch(ranks, command(job, out), logs) as launch:
        launch.wait_until(lambda: len(launch.pids()) == ranks, 60)
        if not early:
            launch.wait_until(lambda: modified(out / "provenance.yaml") != stamp or launch.process.poll() == 0, 60)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.process.wait(delay_s)
        for rank in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(launch.pids()[rank], signal.SIGKILL)
        outcome = launch.wait(60)
    assert not outcome.timed_out, outcome
    kept = require_sound(out)
    if outcome.code == 0:
        return "", kept
    who = "all" if len(victims) == ranks else f"rank {victims[0]}"
    return f"{who} of {ranks}, {delay_s:.2f} s {'from the launch' if early else 'into training'}", kept


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def require_sound(out: Path) -> int:
    """The round that a restart begins with; no checkpoint that is visible may be unsound."""
    checkpoint, rejected = load_newest(out)
    assert rejected == []
    return checkpoint.round_index if checkpoint else 0


def kill_and_resume(folder: Path, seed: int, kills: int) -> None:
    """Run after run, each killed and resumed until it is done, `kills` times in all; every end must be the same."""
    draw = np.random.default_rng(seed)
    job = write_job(folder, OFTEN)
    train(job, folder / "whole", 1)
    whole = result(folder / "whole")
    done, runs = 0, 0
    print(f"\nseed {seed}, {kills} kills")
    while done < kills:
        out, kept, runs, alive = folder / f"run-{runs}", 0, runs + 1, True
        while alive and done < kills:
            who, newest = killed_at_random(job, out, folder / f"logs-{runs}-{done}", draw)
            assert newest >= kept, f"seed {seed}: round {kept} was committed and {newest} is what a restart finds"
            kept, alive = newest, bool(who)
            done += alive
            if alive:
                print(f"run {runs}, kill {done}: {who}; round {kept} kept", flush=True)
        train(job, out, int(draw.integers(1, 5)))  # nothing is left where it had ended
        assert differences(whole, result(out)) == [], f"seed {seed}, run {runs}"
        assert not list((out / "checkpoints").glob(".*"))
    print(f"kills: {done}, runs: {runs}; each run ended with the bits of the undisturbed one")


def test_ranks_killed_at_random_moments(tmp_path):
    kill_and_resume(tmp_path, seed=4, kills=3)


@pytest.mark.soak
def test_ranks_killed_at_many_random_moments(tmp_path):
    """PARSE_MPI_TEST_SEED repeats what was drawn, PARSE_MPI_TEST_KILLS says how many."""
    seed = int(os.environ.get("PARSE_MPI_TEST_SEED", secrets.randbelow(1 << 31)))
    kill_and_resume(tmp_path, seed, int(os.environ.get("PARSE_MPI_TEST_KILLS", 100)))
