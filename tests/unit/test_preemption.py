"""Requests to stop: real signals to a child process, and deadlines on a clock that the test sets."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import child_environment

from parse_mpi.cli import make_parser
from parse_mpi.run.preemption import SIGNALS, Deadline, StopRequest, find_deadline

SCRIPT = """
import ctypes, sys, time
from parse_mpi.run.preemption import StopRequest

def until_asked():
    while not stop.raised:
        time.sleep(0.01)

def in_c():
    # As in MPI: no bytecode runs in the main thread, and a signal doesn't end the call.
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)

def after_the_end():
    stop.ignore()
    print("ignoring", flush=True)
    sys.stdin.read()

def through_all():
    until_asked()
    print("going on", flush=True)
    time.sleep(60)

stop = StopRequest()
stop.rank = 3
stop.end_launch = lambda: print("ended from the thread:", stop.reason, flush=True)
stop.listen()
print("listening", flush=True)
try:
    globals()[sys.argv[1]]()
except KeyboardInterrupt:
    print("interrupted in the main thread", flush=True)
    sys.exit(130)
print("reason:", stop.reason, flush=True)
"""


class Child:
    """A process that listens, and what it says, line by line."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process

    def hear(self, text: str) -> None:
        """Read up to the line with `text`."""
        assert self.process.stdout
        heard = []
        for line in self.process.stdout:
            heard.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} was not said, but {heard}")

    def end(self) -> tuple[int, str]:
        """Exit code, and the rest of what was said."""
        rest, _ = self.process.communicate()
        return self.process.returncode, rest


@contextmanager
def listening(what: str) -> Iterator[Child]:
    """A child that does `what`, for at most 30 s."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=child_environment(),
    )  # fmt: skip
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        child = Child(process)
        child.hear("listening")
        yield child
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_with_a_reason(number: signal.Signals) -> None:
    with listening("until_asked") as child:
        child.process.send_signal(number)
        child.hear(f"{number.name} received: all ranks stop at the next round boundary")
        assert child.end() == (0, f"reason: {number.name} on rank 3\n")


def test_signals_are_seen_while_the_main_thread_is_stuck_and_a_second_ctrl_c_ends_it() -> None:
    with listening("in_c") as child:
        child.process.send_signal(signal.SIGINT)
        child.hear("SIGINT received")
        child.process.send_signal(signal.SIGINT)
        assert child.end() == (130, "ended from the thread: SIGINT on rank 3\n")


def test_ctrl_c_after_another_request_interrupts_the_main_thread_once() -> None:
    with listening("through_all") as child:
        child.process.send_signal(signal.SIGTERM)
        child.hear("going on")
        child.process.send_signal(signal.SIGINT)
        child.process.send_signal(signal.SIGINT)
        assert child.end() == (130, "interrupted in the main thread\n")


def test_the_first_signal_is_the_reason_and_told_once() -> None:
    with listening("in_c") as child:
        child.process.send_signal(signal.SIGUSR1)
        child.hear("SIGUSR1 received")
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            child.process.send_signal(number)
        assert child.end() == (130, "ended from the thread: SIGUSR1 on rank 3\n")


def test_once_the_run_is_over_signals_change_nothing() -> None:
    with listening("after_the_end") as child:
        child.hear("ignoring")
        for number in SIGNALS:
            child.process.send_signal(number)
        assert child.end() == (0, "reason: \n")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1e5

    def __call__(self) -> float:
        return self.now


@given(st.integers(2, 10**6), st.floats(0, 1), st.floats(0.01, 1), st.lists(st.floats(0.01, 1), max_size=30))
def test_a_run_ends_in_time_and_not_much_too_early(
    limit_s: int, start: float, longest: float, shares: list[float]
) -> None:
    """Where two of the longest rounds and the reserve fit, rounds that get no longer end within the limit."""
    reserve_s = min(30.0, limit_s / 10)
    free_s = limit_s - reserve_s
    longest_s = longest * free_s / 2
    clock = Clock()
    begun, deadline = clock.now, Deadline(limit_s, "", clock)
    clock.now += start * (free_s - 2 * longest_s)
    rounds = 0
    stops = False
    while not stops:
        stops = deadline.near()
        clock.now += longest_s * (shares[rounds % len(shares)] if rounds and shares else 1.0)
        rounds += 1
    left_s = begun + limit_s - clock.now
    assert left_s >= -1e-6
    assert left_s < 2 * longest_s + reserve_s


def test_checkpoints_written_beside_the_rounds_are_kept_free_twice() -> None:
    clock = Clock()
    deadline = Deadline(1000, "", clock)
    clock.now += 800
    assert not deadline.near()
    deadline.save_took(90)
    deadline.save_took(20)
    assert deadline.near()  # 200 s are left, 2 * 90 + 30 may be needed


def test_a_short_launch_gets_one_round() -> None:
    """Nothing fits any more, but a chain of such launches still gets on."""
    clock = Clock()
    stop = StopRequest(Deadline(5, "time limit of 00:00:05", clock))
    clock.now += 6
    assert stop.raised


def test_a_deadline_is_the_reason_once_it_is_near() -> None:
    clock = Clock()
    stop = StopRequest(Deadline(100, "time limit of 00:01:40", clock))
    assert not stop.raised
    clock.now += 10
    assert not stop.raised
    assert stop.reason == ""
    clock.now += 75
    assert stop.raised
    assert stop.reason == "time limit of 00:01:40"


def test_without_limits_and_signals_nothing_is_asked_for() -> None:
    stop = StopRequest()
    stop.save_took(1e9)
    assert not stop.raised
    assert stop.reason == ""


def test_the_option_comes_before_slurm() -> None:
    slurm = {"SLURM_JOB_END_TIME": "4102444800"}
    limit, job = find_deadline(93_784, slurm), find_deadline(None, slurm)
    assert limit
    assert limit.reason == "time limit of 26:03:04"
    assert job
    assert job.reason == "time limit of the Slurm job"


@pytest.mark.parametrize("end", [None, "", "0", "1000000000", "UNLIMITED", "-5"])
def test_without_an_end_to_come_there_is_no_deadline(end: str | None) -> None:
    assert find_deadline(None, {} if end is None else {"SLURM_JOB_END_TIME": end}) is None


def test_a_clock_that_is_set_moves_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    deadline = find_deadline(None, {"SLURM_JOB_END_TIME": f"{10**9 + 3600}"})
    assert deadline
    for now in (1e9 - 86_400, 1e9 + 86_400):
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert not deadline.near()


def limit_of(text: str) -> int:
    options = make_parser().parse_args(["run", "job.yaml", "--out", "RUN", "--time-limit", text])
    return int(options.time_limit)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("0:06", 6),
        ("90:30", 5430),
        ("04:00:00", 14_400),
        ("100:00:01", 360_001),
        ("2-0", 172_800),
        ("0-1", 3600),
        ("1-02:03", 93_780),
        ("1-02:03:04", 93_784),
    ],
)
def test_time_limits_are_written_as_for_slurm(text: str, seconds: int) -> None:
    assert limit_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "1-", "-5", "1.5", "1:", "UNLIMITED", "1-2-3"])
def test_other_times_are_explained(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        limit_of(text)
    said = capsys.readouterr().err
    assert "is not a time; write MM, MM:SS, HH:MM:SS" in said or "expected one argument" in said


def test_a_limit_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        limit_of("0:00")
    assert "leave --time-limit out" in capsys.readouterr().err
