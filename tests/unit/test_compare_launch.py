"""One launch of a study: how it ends, and that nothing of it is left running."""

import os
import sys
import time

import pytest
from launch import child_environment

from parse_mpi.compare import launch, progress
from parse_mpi.compare.launch import Launch, clean_environment, marked

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
# Starts a child in a session of its own, as ranks of some launchers are, and leaves it behind.
DESERTER = (
    "import subprocess, sys; "
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True); "
    "print(p.pid, flush=True)"
)


@pytest.fixture(autouse=True)
def _found_from_here(monkeypatch):
    for name in ("PYTHONPATH", "MPIR_CVAR_ENABLE_HEAVY_YIELD", "OMPI_ALLOW_RUN_AS_ROOT"):
        monkeypatch.setenv(name, child_environment()[name])


def wait(started, limit_s=30.0):
    until = time.monotonic() + limit_s
    while (code := started.poll()) is None:
        assert time.monotonic() < until, started.output()
        time.sleep(0.02)
    return code


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_exit_code_and_own_output(tmp_path):
    log = tmp_path / "logs" / "0.5,1.log"
    for code in (0, 3):
        started = Launch([sys.executable, "-c", f"print('code {code}'); raise SystemExit({code})"], 1, 1, 60, log)
        assert wait(started) == code
        assert started.output() == f"code {code}\n"
    assert log.read_text() == "code 0\ncode 3\n"


def test_a_launch_past_its_limit_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "LATE_S", 0.2)
    started = Launch([sys.executable, "-c", SLEEPER], 1, 1, 0.3, tmp_path / "log")
    assert wait(started) == -9
    assert "past its time limit" in started.output()
    assert started.seconds < 20


def test_processes_that_left_their_launcher_are_ended_with_it(tmp_path):
    started = Launch([sys.executable, "-c", DESERTER], 1, 1, 60, tmp_path / "log")
    assert wait(started) == 0
    left = int(started.output())
    until = time.monotonic() + 10
    while not is_gone(left):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_stops_when_asked(tmp_path):
    started = Launch([sys.executable, "-c", SLEEPER], 1, 1, 60, tmp_path / "log")
    while "ready" not in started.output():
        time.sleep(0.02)
    started.ask_to_stop()
    assert wait(started) == -15


def test_several_ranks_are_one_world_that_no_outer_launcher_disturbs(tmp_path, monkeypatch):
    for name, value in {"PMI_RANK": "7", "PMI_SIZE": "9", "SLURM_STEP_NUM_TASKS": "9", "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    program = (
        "import os; from mpi4py import MPI; c = MPI.COMM_WORLD; n = c.allreduce(1); "
        "c.rank or print(n, os.environ['OMP_NUM_THREADS'], flush=True)"
    )
    started = Launch([sys.executable, "-c", program], 2, 3, 60, tmp_path / "log")
    assert wait(started) == 0, started.output()
    assert started.output().split() == ["2", "3"]


def test_the_environment_is_without_traces_of_a_launcher(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    made = clean_environment(2)
    assert "SLURM_NTASKS" not in made
    assert made["OMP_NUM_THREADS"] == "2"
    assert made["PATH"] == os.environ["PATH"]
    assert marked("no launch has this mark") == []


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (67, "1:07"), (3600 * 27 + 61, "27:01:01")])
def test_times_are_told_as_clocks_tell_them(seconds, text):
    assert progress.clock(seconds) == text
