"""Two launches in one directory: one owner at any moment, whoever is killed, suspended or overtaken on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from mpi4py import MPI
from owner_cases import Voice, beat_fast, claim, content, dead_pid, leave_behind, names, new_run
from small_jobs import write_job

from parse_mpi.errors import EvictedError, StorageError
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import Request, run_job
from parse_mpi.run.trainer import Trainer
from parse_mpi.storage import owner as owner_module
from parse_mpi.storage import saver
from parse_mpi.storage.owner import Owner, look
from parse_mpi.storage.rundir import RunDirectory

# The children of fork() below only touch files; no thread of the tests holds a lock that they need.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

run, soon = pytest.fixture(new_run), pytest.fixture(beat_fast)


def test_an_owner_says_who_it_is_beats_and_leaves_nothing(run: RunDirectory, soon: None) -> None:
    voice = Voice()
    owner = claim(run, voice)
    first = content(run)
    assert (first["pid"], first["host"]) == (os.getpid(), os.uname().nodename)
    assert first["boot"]
    assert first["process_start"]
    until = time.monotonic() + 10
    while content(run)["heartbeat"] < first["heartbeat"] + 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert content(run) == first | {"heartbeat": content(run)["heartbeat"]}
    owner.require()
    owner.release()
    assert names(run) == set()
    assert voice == []


def test_a_living_owner_is_named_and_kept(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    owner, voice = claim(run), Voice()
    with pytest.raises(StorageError) as refused:
        claim(run, voice)
    for part in (f"pid {os.getpid()}", os.uname().nodename, "Slurm job 4711", content(run)["since"], "--out", "status"):
        assert part in str(refused.value)
    assert refused.value.exit_code == 5
    assert voice == []  # at once
    owner.require()
    owner.release()


def zombie() -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    start = owner_module._process_start(child)
    os.close(writer)
    os.close(reader)
    until = time.monotonic() + 10
    while owner_module._process_start(child) != -1:
        assert time.monotonic() < until
    return {"pid": child, "process_start": start}


@pytest.mark.parametrize(
    "gone",
    [
        lambda: {"pid": dead_pid()},
        lambda: {"process_start": 1},  # our own pid, of another process before
        lambda: {"process_start": None},
        zombie,
    ],
    ids=["no such pid", "another process", "no start time", "zombie"],
)
def test_a_provably_dead_owner_is_followed_at_once(run: RunDirectory, gone: Callable[[], dict[str, Any]]) -> None:
    leave_behind(run, **gone())
    voice = Voice()
    owner = claim(run, voice)
    assert len(voice) == 1
    assert "taken over from a launch that is gone" in voice[0]
    assert names(run) == {"owner.json"}
    owner.release()


@pytest.mark.parametrize(("restarts", "at_once"), [((0, 1), True), ((1, 2), True), ((1, 1), False), ((2, 1), False)])
def test_the_requeued_job_follows_itself_but_not_its_own_other_step(
    run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch, restarts: tuple[int, int], at_once: bool
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    leave_behind(run, boot="another machine", restart=restarts[0])
    if restarts[1]:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts[1]))
    voice = Voice()
    claim(run, voice).release()
    assert any("watching its heartbeat" in line for line in voice) is not at_once


@pytest.mark.parametrize("elsewhere", [{"boot": "b"}, {"pid_namespace": "pid:[1]"}, {"boot": "", "pid_namespace": ""}])
@pytest.mark.parametrize("clock_s", [-1e6, 1e6])
def test_an_owner_elsewhere_counts_as_gone_when_nothing_stirs(
    run: RunDirectory, soon: None, elsewhere: dict[str, str], clock_s: float
) -> None:
    """Its pid means nothing here, and neither does its clock."""
    leave_behind(run, pid=dead_pid(), **elsewhere)
    os.utime(run.owner_path, (time.time() + clock_s,) * 2)
    voice = Voice()
    started = time.monotonic()
    owner = claim(run, voice)
    assert time.monotonic() - started >= owner_module.WATCH_S
    assert "watching its heartbeat" in voice[0]
    assert voice[1].startswith("WARNING")
    assert "did not stir" in voice[1]
    owner.require()
    owner.release()


def test_an_owner_elsewhere_that_stirs_is_kept(run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = claim(run)
    monkeypatch.setattr(owner_module, "_boot", lambda: "another machine")
    with pytest.raises(StorageError, match="another launch is at work there"):
        claim(run)
    owner.require()
    owner.release()


def test_an_owner_that_ends_while_it_is_watched_leaves_the_directory_free(
    run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "HEARTBEAT_S", 60.0)
    owner = claim(run)
    monkeypatch.setattr(owner_module, "_boot", lambda: "another machine")
    monkeypatch.setattr(owner_module, "WATCH_S", 60.0)
    timer = threading.Timer(0.1, owner.release)
    timer.start()
    voice = Voice()
    claim(run, voice).release()
    timer.join()
    assert len(voice) == 1
    assert "watching" in voice[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}', "\xff\xfe", '{"token": "../../etc/passwd"}'])
def test_a_damaged_file_is_watched_and_replaced_with_a_warning(run: RunDirectory, soon: None, text: str) -> None:
    run.owner_path.write_text(text, "latin-1")
    sighting = look(run)
    assert sighting is not None
    assert (sighting.record, sighting.verdict) == (None, "unknown")
    voice = Voice()
    owner = claim(run, voice)
    assert "damaged" in voice[0]
    assert voice[1].startswith("WARNING")
    assert content(run)["pid"] == os.getpid()
    owner.release()
    assert names(run) == set()


def test_a_file_that_is_just_being_written_is_no_damaged_one(
    run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.owner_path.touch()
    monkeypatch.setattr(owner_module, "WATCH_S", 60.0)
    threading.Timer(0.1, leave_behind, [run]).start()
    with pytest.raises(StorageError, match=f"pid {os.getpid()}"):
        claim(run)


def test_what_can_not_be_read_is_an_error(run: RunDirectory) -> None:
    run.owner_path.mkdir()
    with pytest.raises(StorageError, match=r"owner\.json: is no plain file"):
        claim(run)


# -- losing it -------------------------------------------------------------------------------------------------------


def take_over_from_elsewhere(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """While the owner's thread is suspended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner_module, "_boot", lambda: "another machine")
        patch.setattr(owner_module, "WATCH_S", 0.1)
        patch.setattr(owner_module, "POLL_S", 0.02)
        return claim(run)


def test_who_was_overtaken_while_suspended_writes_no_more(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    suspended = claim(run)
    successor = take_over_from_elsewhere(run, monkeypatch)
    before = content(run)
    for _ in range(2):
        with pytest.raises(EvictedError, match=r"another launch took over \(host .*, pid .*This launch stops"):
            suspended.require()
    assert "took over" in suspended.lost
    suspended.release()
    assert content(run) == before
    successor.require()
    successor.release()
    assert names(run) == set()


def test_the_heartbeat_notices_by_itself(run: RunDirectory, soon: None) -> None:
    voice, told = Voice(), Queue[str]()
    owner = Owner.claim(run, voice.say, voice.warn, on_lost=told.put)
    leave_behind(run)  # with another token
    assert "another launch took over" in told.get(timeout=10)
    assert owner.lost
    owner.release()
    assert told.empty()
    assert names(run) == {"owner.json"}


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_file_that_is_no_longer_ours_is_left_alone(run: RunDirectory, text: str | None) -> None:
    owner = claim(run)
    run.owner_path.unlink()
    if text is not None:
        run.owner_path.write_text(text)
    with pytest.raises(EvictedError, match="damaged" if text is not None else "removed"):
        owner.require()
    owner.release()
    assert names(run) == (set() if text is None else {"owner.json"})


def test_a_directory_that_moves_away_is_not_lost_and_not_made_again(run: RunDirectory) -> None:
    owner, aside = claim(run), run.path.with_name("aside")
    run.path.rename(aside)
    with pytest.raises(StorageError, match=r"can't be renewed: No such file.*move it back") as caught:
        owner.require()
    assert not isinstance(caught.value, EvictedError)
    assert not run.path.exists()
    aside.rename(run.path)
    owner.require()
    run.path.rename(aside)
    run.create()
    run.job_path.touch()
    other = claim(run)
    with pytest.raises(EvictedError):
        owner.require()
    owner.release()
    other.require()
    other.release()


def test_fresh_takes_the_owner_along(run: RunDirectory) -> None:
    owner = claim(run)
    moved = run.fresh()
    assert moved is not None
    owner.move_in(moved)
    assert not (moved / "owner.json").exists()
    owner.require()
    with pytest.raises(StorageError, match="at work there"):
        claim(run)
    moved = run.fresh()
    assert moved is not None
    other = claim(run)  # in the moment between
    with pytest.raises(StorageError, match="another launch began there while the earlier run moved to"):
        owner.move_in(moved)
    owner.release()
    other.require()
    other.release()


def test_an_empty_directory_of_ones_own_is_fresh_already(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.make()
    owner = claim(run)
    assert run.fresh() is None
    owner.require()
    owner.release()


# -- seen from outside -----------------------------------------------------------------------------------------------


def test_what_is_seen_from_outside(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(run) is None
    owner = claim(run)
    sighting = look(run)
    assert sighting is not None
    assert sighting.verdict == "alive"
    assert sighting.age_s < 5
    os.utime(run.owner_path, (time.time() + 3600,) * 2)  # the file system's clock is ahead
    sighting = look(run)
    assert sighting is not None
    assert sighting.age_s == 0
    owner.release()
    leave_behind(run, pid=dead_pid())
    sighting = look(run)
    assert sighting is not None
    assert sighting.verdict == "gone"
    leave_behind(run, boot="another machine")
    sighting = look(run)
    assert sighting is not None
    assert sighting.verdict == "unknown"


def test_a_clock_that_goes_back_changes_nothing(run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(f"20{year}-01-01T00:00:00+00:00" for year in range(99, 9, -1))
    monkeypatch.setattr(owner_module, "utc_now", lambda: next(times))
    monkeypatch.setattr(time, "time", iter(range(10_000, 0, -1)).__next__)
    leave_behind(run, boot="another machine")
    owner = claim(run)
    for _ in range(3):
        owner.require()
    owner.release()
    assert names(run) == set()


def test_a_launch_that_fails_leaves_when_nothing_is_written_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, seen = threading.Event(), list[list[str]]()
    whole_round, whole_commit, release = Trainer.train_round, saver.commit, Owner.release

    def slow_commit(*arguments: Any) -> Any:
        begun.set()
        time.sleep(1)
        return whole_commit(*arguments)

    def train_round(self: Trainer, round_index: int) -> Any:
        if round_index > 5 and begun.wait(0.1):
            raise MemoryError
        return whole_round(self, round_index)

    def watched_release(self: Owner) -> None:
        seen.append([path.name for path in (tmp_path / "run" / "checkpoints").iterdir()])
        release(self)

    monkeypatch.setattr(saver, "commit", slow_commit)
    monkeypatch.setattr(Trainer, "train_round", train_round)
    monkeypatch.setattr(Owner, "release", watched_release)
    job = write_job(tmp_path, {"train": {"rounds": 100}, "checkpoint": {"every": 5}, "evaluate": {"every": 100}})
    with pytest.raises(MemoryError):
        run_job(World(MPI.COMM_SELF), Request(load_job(job), tmp_path / "run", False, None, ["test"]), StopRequest())
    assert seen == [["round-000005"]]
