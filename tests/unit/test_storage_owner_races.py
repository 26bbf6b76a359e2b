"""Launches that meet: one owner at any moment, whoever comes, goes or is killed before whichever file operation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from owner_cases import beat_fast, claim, dead_pid, leave_behind, names, new_run, try_to_claim

from parse_mpi.errors import StorageError
from parse_mpi.storage import owner as owner_module
from parse_mpi.storage.owner import Owner
from parse_mpi.storage.rundir import RunDirectory

# The children of fork() below only touch files; no thread of the tests holds a lock that they need.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

run, soon = pytest.fixture(new_run), pytest.fixture(beat_fast)

ENDED_BY_ITSELF, KILLED = 42, 43


@contextmanager
def before_operation(number: int, act: Callable[[], object]) -> Iterator[list[str]]:
    """Run `act` before the file operation of this number; yields the names of the operations so far."""
    done: list[str] = []

    def wrapped(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                done.append(name)
                if len(done) == number:
                    act()
            return operation(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "lstat", "pwrite", "close", "rename", "unlink"):
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(owner_module, "open", wrapped("read", open), raising=False)
        yield done


def never_there(run: RunDirectory) -> None:
    """No owner."""


def left_by_a_kill(run: RunDirectory) -> None:
    leave_behind(run, pid=dead_pid())


def left_by_two_kills(run: RunDirectory) -> None:
    """The second died while it took over from the first."""
    leave_behind(run, pid=dead_pid(), token="0" * 16)
    (run.path / f".owner.{'0' * 16}.tmp").write_bytes(run.owner_path.read_bytes().replace(b"0" * 16, b"1" * 16))


BEFORE = [never_there, left_by_a_kill, left_by_two_kills]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("stays", [True, False])
def test_of_two_that_come_at_once_one_wins(
    run: RunDirectory, soon: None, before: Callable[[RunDirectory], None], stays: bool
) -> None:
    """The second claims, and in the other case leaves again, before each operation of the first in turn.

    Where the first has a file half written it stands still for so long that it is taken for dead.
    """
    number, winners = 0, set()
    operations: list[str] = [""]
    while number <= len(operations):
        number += 1
        before(run)
        seconds: list[Owner | None] = []

        def come(seconds: list[Owner | None] = seconds) -> None:
            second = try_to_claim(run)
            if second is not None and not stays:
                second.release()
            seconds.append(second)

        with before_operation(number, come) as operations:
            first = try_to_claim(run)
        second = next(iter(seconds), None)
        if stays:
            assert (first is None) != (second is None), (number, operations)
        else:
            assert first is not None or second is not None, (number, operations)
        winners.add("second" if first is None else "first")
        owner = first if first is not None else second if stays else None
        if owner is not None:
            owner.require()
            owner.release()
        assert names(run) == set(), (number, operations)
    assert number > 5
    assert winners == ({"first", "second"} if stays else {"first"})


@pytest.mark.parametrize("before", BEFORE)
def test_a_crowd_of_launches_has_one_owner(run: RunDirectory, before: Callable[[RunDirectory], None]) -> None:
    for _ in range(10):
        before(run)
        start, claims = threading.Barrier(6), list[Owner | None]()

        def come(start: threading.Barrier = start, claims: list[Owner | None] = claims) -> None:
            start.wait()
            claims.append(try_to_claim(run))

        threads = [threading.Thread(target=come) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(claims) == 6
        (owner,) = filter(None, claims)
        owner.require()
        owner.release()
        assert names(run) == set()


@pytest.mark.parametrize("killed_in", ["claim", "release"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_kill_at_every_operation_leaves_the_directory_free(
    run: RunDirectory, soon: None, before: Callable[[RunDirectory], None], killed_in: str
) -> None:
    number, code = 0, KILLED
    while code == KILLED:
        number += 1
        before(run)
        child = os.fork()
        if child == 0:
            try:
                owner = None if killed_in == "claim" else claim(run)
                with before_operation(number, lambda: os._exit(KILLED)):
                    (owner or claim(run)).release()
            finally:
                os._exit(ENDED_BY_ITSELF)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        owner = claim(run)
        owner.require()
        owner.release()
        assert names(run) == set()
    assert code == ENDED_BY_ITSELF
    assert number > 5


def test_a_heartbeat_that_comes_back_before_the_end_of_a_take_over_prevents_it(
    run: RunDirectory, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "HEARTBEAT_S", 60.0)
    owner, make = claim(run), owner_module._make
    attempts = []

    def late(path: Path, record: owner_module.Record) -> bool:
        attempts.append(path)
        owner.require()
        return make(path, record)

    with monkeypatch.context() as patch:
        patch.setattr(owner_module, "_boot", lambda: "another machine")
        patch.setattr(owner_module, "_make", late)
        beating = threading.Timer(0.3, owner.require)  # while it is watched for the second time
        beating.start()
        with pytest.raises(StorageError, match="at work there"):
            claim(run)
        beating.join()
    assert attempts
    owner.require()
    owner.release()
    assert names(run) == set()
