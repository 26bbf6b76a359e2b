"""Runs on two ranks that are asked to stop, wherever they are at that moment, and go on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from launch import Launch, Outcome
from real_runs import differences, result, train
from small_jobs import write_job

from parse_mpi.cli import main
from parse_mpi.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_TO_BE_CONTINUED
from parse_mpi.storage.rundir import RunDirectory, RunState

# The real command, some ranks of which wait at a place of their work until a file appears.
HELD = """
import sys, time
from pathlib import Path
from mpi4py import MPI
from parse_mpi.agents.group import AgentGroup
from parse_mpi.cli import main
from parse_mpi.run import session
from parse_mpi.run.evaluation import Evaluator

place, ranks, gate = (sys.argv.pop(1) for _ in range(3))
owner, name = {
    "building": (session, "load_dataset"),
    "learning": (AgentGroup, "local_steps"),
    "evaluating": (Evaluator, "accuracy"),
}[place]
function = getattr(owner, name)

def held(*arguments, **named):
    if str(MPI.COMM_WORLD.rank) in ranks:
        print("held", flush=True)
        while not Path(gate).exists():
            time.sleep(0.02)
    return function(*arguments, **named)

setattr(owner, name, held)
sys.exit(main())
"""
ROUNDS = 12
USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT


class StoppedRun:
    """A run of small_jobs, launched again and again on two ranks."""

    def __init__(self, folder: Path):
        self.job = write_job(folder, {"mode": "exact", "train": {"rounds": ROUNDS}, "evaluate": {"every": ROUNDS}})
        self.out = folder / "run"
        self.gate = folder / "gate"
        self.launches = 0

    def launch_held(self, place: str, ranks: Sequence[int]) -> Launch:
        """Launched, and waited for until these ranks are held at `place`."""
        self.gate.unlink(missing_ok=True)
        self.launches += 1
        held = [place, "".join(map(str, ranks)), str(self.gate)]
        command = [sys.executable, "-c", HELD, *held, "run", str(self.job), "--out", str(self.out)]
        launch = Launch(2, command, self.out.parent / f"logs-{self.launches}")
        launch.wait_until(lambda: all("held" in launch.log(rank) for rank in ranks), limit_s=60)
        return launch

    def signalled(self, place: str, ranks: Sequence[int], number: signal.Signals, receivers: Sequence[int]) -> Outcome:
        """Hold ranks, signal, and see it noticed before they are released; how the launch ended."""
        with self.launch_held(place, ranks) as launch:
            send(launch, number, receivers)
            self.gate.touch()
            outcome = launch.wait(60)
        assert outcome.code == EXIT_OK, outcome
        return outcome

    def state(self, outcome: Outcome) -> RunState:
        """What the launch left, a run that is to be continued from a checkpoint."""
        state = RunDirectory(self.out).read_state()
        assert state
        assert (state.status, state.exit_code) == ("stopped", EXIT_OK)
        assert f"stopped at round {state.round} of {ROUNDS}: {state.reason}" in outcome.logs[0]
        assert (self.out / "checkpoints" / f"round-{state.round:06d}" / "manifest.json").exists()
        assert main(["status", str(self.out)]) == EXIT_TO_BE_CONTINUED
        return state


def send(launch: Launch, number: signal.Signals, receivers: Sequence[int]) -> None:
    """Signal these ranks and wait until they say so."""
    pids = launch.pids()
    for rank in receivers:
        os.kill(pids[rank], number)
    launch.wait_until(lambda: all(f"{number.name} received" in said(launch, rank) for rank in receivers), limit_s=20)


def said(launch: Launch, rank: int) -> str:
    """What a rank printed, and what it wrote into its own log once there is one."""
    log = launch.log_dir.parent / "run" / "log" / f"rank-{rank:04d}.log"
    return launch.log(rank) + (log.read_text() if log.exists() else "")


def test_a_run_stopped_in_every_way_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    run = StoppedRun(tmp_path)
    state = run.state(run.signalled("building", [0, 1], TERM, [0, 1]))
    assert (state.round, state.reason) == (1, "SIGTERM on rank 0")
    state = run.state(run.signalled("learning", [0], USR1, [1]))  # rank 1 waits in MPI for rank 0's rows
    assert 1 < state.round < 5
    assert state.reason == "SIGUSR1 on rank 1"
    before = state.round
    state = run.state(train(run.job, run.out, 2, "--time-limit", "0:01"))  # over before a first round, which is trained
    assert (state.round, state.reason) == (before + 1, "time limit of 00:00:01")
    run.signalled("evaluating", [0, 1], INT, [0])  # for the first time in this launch, after the last round
    assert main(["status", str(run.out)]) == EXIT_OK
    train(run.job, tmp_path / "whole", 1)
    whole, parts = result(tmp_path / "whole"), result(run.out)
    assert parts["evaluations/round"].tolist() == [1, before, state.round, ROUNDS]
    parts |= {name: array[-1:] for name, array in parts.items() if name.startswith("evaluations/")}
    assert differences(whole, parts) == []


@pytest.mark.parametrize(("held", "first"), [([0, 1], TERM), ([1], INT)], ids=["ranks compute", "rank 0 waits in MPI"])
def test_ctrl_c_after_another_request_ends_all_at_once(held: list[int], first: signal.Signals, tmp_path: Path) -> None:
    run = StoppedRun(tmp_path)
    with run.launch_held("learning", held) as launch:
        send(launch, first, [0])
        time.sleep(0.5)
        assert launch.process.poll() is None
        start = time.monotonic()
        os.kill(launch.pids()[0], INT)
        outcome = launch.wait(60)
    assert time.monotonic() - start < 30
    assert outcome.code == EXIT_INTERRUPTED, outcome
    assert "interrupted; to go on from the newest checkpoint, start the same command again" in outcome.logs[0]
    assert "Traceback" not in "".join(outcome.logs)
    assert main(["status", str(run.out)]) == EXIT_TO_BE_CONTINUED
