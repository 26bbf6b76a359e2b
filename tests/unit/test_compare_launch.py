"""One launch of a study: how it ends, and that nothing of it is left running."""

import os
import signal
import sys
import time

import pytest
from launch import child_environment

from parse_mpi.compare import launch, progress
from parse_mpi.compare.launch import Launch, clean_environment, marked
from parse_mpi.compare.template import Template
from parse_mpi.errors import LaunchError

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


def test_options_reach_the_launcher_and_ranks_that_share_cores_yield(tmp_path, monkeypatch):
    teller = tmp_path / "mpiexec"
    teller.write_text('#!/bin/sh\necho "told: $*, yield: $MPIR_CVAR_ENABLE_HEAVY_YIELD"\n')
    teller.chmod(0o755)
    monkeypatch.delenv("MPIR_CVAR_ENABLE_HEAVY_YIELD")
    monkeypatch.setattr(launch, "find_mpiexec", lambda: str(teller))
    monkeypatch.setattr(launch, "usable_cores", lambda: 4)
    for threads, yields in ((2, ""), (3, "1")):
        started = Launch(["run", "it"], 2, threads, 60, tmp_path / "log", options=["-hosts", "a,b"])
        assert wait(started) == 0
        assert started.output() == f"told: -n 2 -hosts a,b run it, yield: {yields}\n"


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


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A template from which modules of this folder can be started too."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    made = Template(clean_environment(3))
    yield made
    made.close()


def forked(template, folder, program, limit_s=60):
    """A launch of a module with this program."""
    name = f"program_{len(list(folder.glob('program_*')))}"
    (folder / f"{name}.py").write_text(program)
    return Launch([sys.executable, "-m", name, "argument"], 1, 3, limit_s, folder / "logs" / f"{name}.log", template)


def test_forked_launches_are_processes_like_others(tmp_path, template):
    ended = forked(
        template,
        tmp_path,
        "import os, sys\n"
        "assert __name__ == '__main__' and os.getsid(0) == os.getpid() and sys.stdin.read() == ''\n"
        "print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules, 'mpi4py.MPI' in sys.modules)\n"
        "print('an error', file=sys.stderr)\n"
        "raise SystemExit(3)\n",
    )
    failed = forked(template, tmp_path, "import atexit; atexit.register(print, 'at exit'); 1 / 0")
    assert (wait(ended), wait(failed)) == (3, 1)
    assert ended.output() == "['argument'] 3 True False\nan error\n"
    assert "ZeroDivisionError" in failed.output()
    assert "at exit" in failed.output()


def test_forked_launches_end_when_asked_or_late(tmp_path, template, monkeypatch):
    monkeypatch.setattr(launch, "LATE_S", 0.2)
    asked, late = forked(template, tmp_path, SLEEPER), forked(template, tmp_path, SLEEPER, limit_s=0.3)
    assert wait(late) == -9
    assert "past its time limit" in late.output()
    while "ready" not in asked.output():
        time.sleep(0.02)
    asked.ask_to_stop()
    assert wait(asked) == -15


def test_a_template_ends_with_its_pipe_and_not_by_signals_that_are_meant_for_a_study(tmp_path, template):
    """As Slurm sends them to all processes of a step; what is forked heeds them."""
    before = forked(template, tmp_path, SLEEPER)
    while "ready" not in before.output():
        time.sleep(0.02)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(template._process.pid, number)
    after = forked(template, tmp_path, "import signal; signal.raise_signal(signal.SIGUSR1)")
    assert wait(after) == -signal.SIGUSR1
    interrupted = forked(template, tmp_path, "import signal; signal.raise_signal(signal.SIGINT)")
    assert wait(interrupted) != 0
    assert "KeyboardInterrupt" in interrupted.output()
    assert before.poll() is None
    before.kill()


def test_a_launch_outlives_the_template_that_started_it(tmp_path):
    made = Template(clean_environment(1))
    log = tmp_path / "log"
    going = Launch([sys.executable, "-m", "timeit", "-n1", "-r1", "import time; time.sleep(1)"], 1, 1, 60, log, made)
    os.kill(made._process.pid, 9)
    with pytest.raises(LaunchError, match="the same command takes up what is left"):
        wait(going)
    made.close()
    until = time.monotonic() + 30
    while "1 loop" not in going.output():
        assert time.monotonic() < until
        time.sleep(0.05)
