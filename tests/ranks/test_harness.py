"""The harness itself: right verdicts on passing, failing, hanging and killed ranks, and nothing left running."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launch
import pytest
from rank_tests import Verdict, run_rank_tests

from parse_mpi.errors import LaunchError

IN_RANKS = """
    import os, signal
    from mpi4py import MPI

    comm = MPI.COMM_WORLD

    def test_before():
        assert comm.allreduce(1) == 2

    def test_it():
        {body}
        comm.Barrier()
"""
FAIL = "assert comm.rank != 1, 'planted'"
HANG = "if comm.rank == 1: comm.recv(source=0, tag=99)"
KILL = "if comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test no process of its launches runs any more."""
    launches: list[launch.Launch] = []

    def remember(*arguments: Any) -> launch.Launch:
        launches.append(real(*arguments))
        return launches[-1]

    real = launch.Launch
    monkeypatch.setattr(launch, "Launch", remember)
    yield
    assert launches
    assert not [pid for started in launches for pid in started.left_running()]


def verdict(tmp_path: Path, body: str) -> Verdict:
    file = tmp_path / "ranks_planted.py"
    lines = IN_RANKS.format(body=body).splitlines()
    file.write_text("\n".join(line.removeprefix("    ") for line in lines))
    return run_rank_tests([file], 2, tmp_path / "logs", hang_s=1.2, limit_s=20)


def test_ranks_that_pass(tmp_path: Path, nothing_left: None) -> None:
    result = verdict(tmp_path, "pass")
    assert result.passed, result.text
    assert result.text == "2 tests passed on 2 ranks"


def test_one_rank_that_fails(tmp_path: Path, nothing_left: None) -> None:
    result = verdict(tmp_path, FAIL)
    assert not result.passed
    assert "rank 1: FAILED ::test_it\n" in result.text
    assert "AssertionError: planted" in result.text.split("--- log of rank 1 ---")[1]
    assert "rank 0: FAILED" not in result.text
    assert "log of rank 0" not in result.text


def test_a_hang_shows_where_every_rank_is(tmp_path: Path, nothing_left: None) -> None:
    result = verdict(tmp_path, HANG)
    assert not result.passed
    for rank, line in enumerate(["comm.Barrier()", HANG]):
        assert f"rank {rank}: was inside ::test_it when it ended" in result.text
        number = 1 + IN_RANKS.format(body=HANG).splitlines().index(f"        {line}")
        log = result.text.split(f"--- log of rank {rank} ---")[1]
        assert "Timeout (0:00:01.2" in log
        assert f'ranks_planted.py", line {number} in test_it' in log


def test_a_killed_rank_ends_the_launch(tmp_path: Path, nothing_left: None) -> None:
    start = time.monotonic()
    result = verdict(tmp_path, KILL)
    assert not result.passed
    assert "rank 1: was inside ::test_it when it ended" in result.text
    assert "FAILED" not in result.text
    assert time.monotonic() - start < 10


def test_the_time_limit_ends_ranks_that_ignore_signals(tmp_path: Path, nothing_left: None) -> None:
    stubborn = (
        "import signal, time\nfor s in (15, 2, 1): signal.signal(s, signal.SIG_IGN)\nprint('here')\ntime.sleep(60)"
    )
    outcome = launch.run(2, [sys.executable, "-c", stubborn], tmp_path, limit_s=1.5)
    assert outcome.timed_out
    assert outcome.logs == ("here\n", "here\n")
    assert outcome.seconds < 3


def test_traces_of_another_launcher_do_not_reach_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("PMI_SIZE", "7")
    show = "from mpi4py import MPI; import os; print(MPI.COMM_WORLD.size, os.environ.get('SLURM_NTASKS'))"
    outcome = launch.run(2, [sys.executable, "-c", show], tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.logs == ("2 None\n", "2 None\n")


def test_no_mpiexec_is_said_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"no mpiexec beside .* install an MPI"):
        launch.find_mpiexec()
