"""A writer killed or starved at any point: what is loaded afterwards is a whole checkpoint with the right numbers.

All of storage's file operations go through `os`, so a fault can be put at each of them in turn. The samples are fixed;
the last tests use a real SIGKILL at arbitrary times, a real limit on file sizes and a real full file system.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saves import Alone, save_now

from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import Checkpoint, load_newest
from parse_mpi.storage.metrics import consolidate, read_metrics, write_segment
from parse_mpi.storage.rundir import RunDirectory, RunState
from parse_mpi.storage.saver import SaveRecord
from parse_mpi.storage.shard import AgentArray

# The children of fork() below only write files; no thread of the tests holds a lock that they need.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

OPERATIONS = ("open", "pwrite", "posix_fallocate", "fsync", "close", "rename", "unlink", "mkdir", "rmdir")
NAME = "slices/encoder[top]/parameters"
AGENTS = np.arange(3)
ENDED_BY_ITSELF = 42


def rows(round_index: int, width: int = 500) -> Any:
    return np.random.default_rng(round_index).normal(size=(len(AGENTS), width))


def save(run_dir: Path, round_index: int, width: int = 500) -> SaveRecord:
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    arrays = [AgentArray(NAME, AGENTS, rows(round_index, width))]
    return save_now(Alone(), run_dir, round_index, arrays, {"round": round_index}, keep=2)


def loaded_round(run_dir: Path, width: int = 500) -> int:
    """The newest round; its numbers must be right, and nothing that is visible may be unsound."""
    for path in (run_dir / "checkpoints").glob("round-*"):
        Checkpoint(path).verify()
    checkpoint, rejections = load_newest(run_dir)
    assert rejections == []
    assert checkpoint is not None
    np.testing.assert_array_equal(checkpoint.read(NAME, AGENTS), rows(checkpoint.round_index, width))
    return checkpoint.round_index


@contextmanager
def before_operation(number: int, fault: Callable[[str, tuple[Any, ...]], None]) -> Iterator[list[str]]:
    """Run `fault` before the file operation of this number; yields the names of the operations so far."""
    done: list[str] = []

    def wrapped(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            if len(done) == number:
                fault(name, arguments)
            return operation(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield done


def die(name: str, arguments: tuple[Any, ...]) -> None:
    """SIGKILL; a write gets half way first."""
    if name == "pwrite":
        descriptor, data, offset = arguments
        os.pwrite(descriptor, data[: len(data) // 2], offset)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before(number: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that dies at that operation; False where it ended before."""
    child = os.fork()
    if child == 0:
        try:
            with before_operation(number, die):
                work()
        finally:
            os._exit(ENDED_BY_ITSELF)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == ENDED_BY_ITSELF
    return False


def test_a_save_killed_at_every_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    for round_index in (1, 2):
        assert save(tmp_path, round_index).committed
    number, loaded = 1, []
    while killed_before(number, lambda: save(tmp_path, 3)):
        loaded.append(loaded_round(tmp_path))
        number += 1
        if loaded[-1] == 3:  # put the old state back
            shutil.rmtree(tmp_path / "checkpoints" / "round-000003")
            for round_index in (1, 2):
                save(tmp_path, round_index)
    assert number > 15
    assert set(loaded) == {2, 3}
    assert loaded == sorted(loaded)
    assert loaded_round(tmp_path) == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_at_every_operation_is_said_and_harms_nothing(tmp_path: Path, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    assert save(tmp_path, 1).committed
    number, round_index, operations = 1, 2, [""]
    while len(operations) >= number - 1:
        with before_operation(number, fail) as operations:
            record = save(tmp_path, round_index)
        loaded = loaded_round(tmp_path)
        assert loaded == round_index if record.committed else loaded in (round_index - 1, round_index)
        if not record.committed:
            assert os.strerror(code) in record.reason
            assert save(tmp_path, round_index).committed  # the next attempt succeeds
        number, round_index = number + 1, round_index + 1
    assert number > 15


def test_metrics_killed_at_every_operation_are_whole(tmp_path: Path) -> None:
    def segment(first: int, last: int) -> None:
        write_segment(tmp_path, first, last, {"rounds/round": np.arange(first, last + 1)}, {})

    def work() -> None:
        segment(5, 9)
        consolidate(tmp_path)

    for first, last in ((1, 4), (5, 8), (9, 12)):
        segment(first, last)
    number, ends = 1, set()
    while killed_before(number, work):
        rounds = read_metrics(tmp_path)["rounds/round"].tolist()
        assert rounds == list(range(1, rounds[-1] + 1))
        ends.add(rounds[-1])
        number += 1
    assert ends <= {12, 8, 4, 9}
    assert {4, 9} <= ends
    assert read_metrics(tmp_path)["rounds/round"].tolist() == list(range(1, 10))


def test_state_killed_at_every_operation_is_the_old_or_the_new(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    states = [
        RunState(round=round_index, rounds=9, status="running", time="2026-11-20T12:00:00+00:00")
        for round_index in (1, 2)
    ]
    run.write_state(states[0])
    number, found = 1, []
    while killed_before(number, lambda: run.write_state(states[1])):
        state = run.read_state()
        assert state in states
        found.append(states.index(state))
        number += 1
    assert sorted(set(found)) == [0, 1]
    assert found == sorted(found)


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_storage_crash import save
round_index = int(sys.argv[1])
while True:
    round_index += 1
    assert save(Path({run_dir!r}), round_index, 100_000).committed
    print(round_index, flush=True)
"""


def test_sigkill_at_arbitrary_times(tmp_path: Path) -> None:
    """Kill a process that saves without pause: no round that it said was committed is lost."""
    import parse_mpi

    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(Path(parse_mpi.__file__).parents[1])]
    script = WRITER.format(paths=paths, run_dir=str(tmp_path))
    newest = 0
    for delay_s in np.random.default_rng(0).uniform(0.0, 0.1, size=6):
        writer = subprocess.Popen([sys.executable, "-c", script, str(newest)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(delay_s)
        writer.kill()
        said += writer.stdout.readlines()
        writer.wait()
        writer.stdout.close()
        newest = loaded_round(tmp_path, 100_000)
        committed = [int(line) for line in said if line.endswith("\n")]
        assert newest in (committed[-1], committed[-1] + 1)


@pytest.mark.parametrize("limit_bytes", [0, 1, 700, 3000, 10_000])
def test_a_limit_on_file_sizes_is_said_and_harms_nothing(tmp_path: Path, limit_bytes: int) -> None:
    assert save(tmp_path, 1).committed
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        record = save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not record.committed
    assert "shard-0000.h5: can't be written: File too large. Raise the limit" in record.reason
    assert loaded_round(tmp_path) == 1
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["round-000001"]


def test_a_full_disk_is_said_and_harms_nothing(small_file_system: Callable[[int], Path]) -> None:
    disk = small_file_system(1)
    width = 10_000  # 240 kB a checkpoint
    assert save(disk, 1, width).committed
    filler = disk / "filler"
    for free_bytes in (0, 4096, 100_000, 200_000, 240_000):
        taken = os.statvfs(disk)
        filler.write_bytes(bytes(taken.f_bavail * taken.f_frsize - free_bytes))
        record = save(disk, 2, width)
        assert not record.committed
        assert "No space left on device. Free space on that file system" in record.reason
        with pytest.raises(StorageError, match="No space left"):
            write_segment(disk, 1, 2, {"rounds/loss": np.ones((1, 60_000))}, {})
        filler.unlink()
        assert loaded_round(disk, width) == 1
        assert os.listdir(disk / "checkpoints") == ["round-000001"]
    assert save(disk, 2, width).committed
    assert loaded_round(disk, width) == 2
