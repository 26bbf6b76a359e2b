"""A fault at every system call by which a launch touches its run directory, put there from outside by strace.

Four kinds: SIGKILL; ENOSPC; EIO; and a lie, where a call that moves bytes claims to have moved some or all of them and
moves none. Whatever is hit: the newest committed checkpoint loads, or the one before, with exactly the numbers of its
round; the metrics up to it are there and right; a failure is said; and what comes next succeeds.

`make test` puts every SAMPLE-th of these faults, `make soak` all of them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strace
from saves import Alone
from strace import CRASHED, Call, Ending

from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import Checkpoint, load_newest
from parse_mpi.storage.metrics import consolidate, read_metrics, require_rounds, write_segment, write_table
from parse_mpi.storage.owner import Owner
from parse_mpi.storage.rundir import RunDirectory, RunState
from parse_mpi.storage.saver import Saver, SaveRecord
from parse_mpi.storage.shard import AgentArray
from parse_mpi.storage.write import write_text

# The children of fork() only write files; no thread of the tests holds a lock that they need.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SAMPLE = 23
NAME = "slices/encoder[top]/parameters"
AGENTS = np.arange(3)
BEFORE, FAULTY = 2, 3  # the newest round before, and the round whose save is disturbed
COMMITTED, METRICS_WRITTEN, FAILED = 1, 2, 4  # bits of a child's exit code
MOVE_BYTES = ("read", "pread64", "write", "pwrite64")


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    if reason := strace.why_not():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner whose file was cut short is watched before its place is taken: not for half a minute here.

    And no heartbeat meets the directory while a copy takes its place: the saves themselves renew the file.
    """
    monkeypatch.setattr("parse_mpi.storage.owner.HEARTBEAT_S", 3600.0)
    monkeypatch.setattr("parse_mpi.storage.owner.WATCH_S", 0.02)
    monkeypatch.setattr("parse_mpi.storage.owner.POLL_S", 0.01)


# -- a small run ------------------------------------------------------------------------------------------------------


def rows(round_index: int) -> Any:
    return np.random.default_rng(round_index).normal(size=(len(AGENTS), 500))


def losses(first: int, last: int) -> Any:
    return np.stack([np.random.default_rng([1, r]).normal(size=40) for r in range(first, last + 1)])


def state_of(round_index: int) -> RunState:
    return RunState(round=round_index, rounds=9, status="running", time="2026-11-20T12:00:00+00:00")


def save(owner: Owner, round_index: int, first: int) -> SaveRecord:
    """All that a run does to save a round: owner.json, the metrics since round `first`, a checkpoint, state.json."""
    run = owner.run

    def segment() -> object:
        arrays = {"rounds/round": np.arange(first, round_index + 1), "rounds/loss": losses(first, round_index)}
        return write_segment(run.path, first, round_index, arrays, {})

    def state() -> list[AgentArray]:
        return [AgentArray(NAME, AGENTS, rows(round_index))]

    saver = Saver(Alone(), run.path, 2, lambda done: run.write_state(state_of(done)), owner.require)
    saver.begin(round_index, state, {"round": round_index}, segment)
    record = saver.finish()
    saver.close()
    assert record is not None
    return record


def new_run(path: Path) -> Owner:
    run = RunDirectory(path)
    run.create()
    owner = Owner.claim(run, unwanted, unwanted)
    write_table(path, "plan", {"agents/id": AGENTS}, {})
    for round_index in range(1, BEFORE + 1):
        assert save(owner, round_index, round_index).committed
    return owner


def unwanted(text: str) -> None:
    raise AssertionError(text)


def require_sound(run_dir: Path) -> int:
    """The round that a restart begins with, everything being as it must; all visible checkpoints hold."""
    for path in (run_dir / "checkpoints").glob("round-*"):
        Checkpoint(path).verify()
    checkpoint, rejections = load_newest(run_dir)
    assert rejections == []
    assert checkpoint is not None
    require_right(run_dir, checkpoint)
    state = RunDirectory(run_dir).read_state()
    assert state in (state_of(checkpoint.round_index - 1), state_of(checkpoint.round_index))
    return checkpoint.round_index


def require_right(run_dir: Path, checkpoint: Checkpoint) -> None:
    """The numbers are those of the checkpoint's round, and the metrics reach it."""
    np.testing.assert_array_equal(checkpoint.read(NAME, AGENTS), rows(checkpoint.round_index))
    assert checkpoint.header == {"round": checkpoint.round_index}
    require_rounds(run_dir, checkpoint.round_index)
    metrics = read_metrics(run_dir)
    last = len(metrics["rounds/round"])
    np.testing.assert_array_equal(metrics["rounds/round"], np.arange(1, last + 1))
    np.testing.assert_array_equal(metrics["rounds/loss"], losses(1, last))
    np.testing.assert_array_equal(metrics["agents/id"], AGENTS)


# -- what is disturbed, and what must hold afterwards -----------------------------------------------------------------


def save_one(owner: Owner) -> int:
    record = save(owner, FAULTY, FAULTY)
    assert record.committed or record.reason
    return COMMITTED * record.committed + METRICS_WRITTEN * record.metrics_written + FAILED * bool(record.reason)


def check_save(owner: Owner, ending: Ending) -> str:
    """Either way the next round is saved and right: by a new launch, or from the memory of this one."""
    run_dir = owner.run.path
    loaded = require_sound(run_dir)
    assert loaded in (BEFORE, FAULTY)
    if ending.code is None:
        following = first = loaded + 1
    else:
        assert loaded == FAULTY or not ending.code & COMMITTED
        following, first = FAULTY + 1, FAULTY + 1 if ending.code & METRICS_WRITTEN else FAULTY
    assert save(owner, following, first).committed
    assert require_sound(run_dir) == following
    assert not list((run_dir / "checkpoints").glob(".*"))
    return "the new round loads" if loaded == FAULTY else "the round before loads"


def end(owner: Owner) -> int:
    """What the end of a run writes."""
    try:
        write_table(owner.run.path, "ending", {"ending/seconds": np.ones((1, 4))}, {})
        owner.run.write_state(state_of(BEFORE))
        consolidate(owner.run.path)
    except StorageError:
        return FAILED
    return 0


def check_end(owner: Owner, ending: Ending) -> str:
    assert require_sound(owner.run.path) == BEFORE
    assert end(owner) == 0
    np.testing.assert_array_equal(read_metrics(owner.run.path)["ending/seconds"], np.ones((1, 4)))
    assert owner.run.metrics_path.exists()
    assert require_sound(owner.run.path) == BEFORE
    return "nothing is lost"


def start(owner: Owner) -> int:
    """A new run beside the checkpoints, where nothing of the other is looked at: claimed, begun and left."""
    run = RunDirectory(owner.run.path / "new")
    try:
        run.make()
        owner = Owner.claim(run, lambda _: None, lambda _: None)
        run.create()
        write_text(run.job_path, "seed: 1\n")
        owner.require()
        owner.release()
    except StorageError:
        return FAILED
    return 0


def check_start(owner: Owner, ending: Ending) -> str:
    run = RunDirectory(owner.run.path / "new")
    assert start(owner) == 0
    assert run.job_path.read_text() == "seed: 1\n"
    assert not run.owner_path.exists()
    return "the next launch begins"


def resume(owner: Owner) -> int:
    """What a restart reads: no wrong numbers, and no fresh start where there is a checkpoint."""
    try:
        checkpoint, rejections = load_newest(owner.run.path)
        assert checkpoint or rejections
        if checkpoint is not None:
            require_right(owner.run.path, checkpoint)
            owner.run.read_state()
    except StorageError:
        return FAILED
    return FAILED if rejections else 0


def check_resume(owner: Owner, ending: Ending) -> str:
    assert require_sound(owner.run.path) == BEFORE
    return "the next restart finds all"


@dataclass(frozen=True)
class Work:
    """do: in the child; its exit code. check: in the parent afterwards; what became of it in words.

    lies: whether calls lie, too. A file is hashed before libhdf5 reads it: whoever lies only then is not found out.
    """

    do: Callable[[Owner], int]
    check: Callable[[Owner, Ending], str]
    lies: bool = True


WORKS = {
    "save": Work(save_one, check_save),
    "end": Work(end, check_end),
    "start": Work(start, check_start),
    "resume": Work(resume, check_resume, lies=False),
}


# -- the sweep --------------------------------------------------------------------------------------------------------


def faults_at(call: Call, lying: bool) -> list[str]:
    lying = lying and call.name in MOVE_BYTES and call.returned > 1
    lies = {1, call.returned // 2, call.returned} if lying else set()
    return ["signal=SIGKILL", "error=ENOSPC", "error=EIO", *(f"retval={moved}" for moved in sorted(lies))]


def sweep(work: Work, folder: Path, every: int) -> None:
    """Put every `every`-th fault into the work on a fresh copy of one run each; print how many led to what."""
    run_dir, copy, log = folder / "run", folder / "copy", folder / "calls.log"
    owner = new_run(run_dir)
    shutil.copytree(run_dir, copy)

    def do() -> int:
        return work.do(owner)

    def restored() -> Path:
        shutil.rmtree(run_dir)
        return Path(shutil.copytree(copy, run_dir))

    code = do()  # what is imported on the way is there before calls are counted
    assert not code & FAILED
    work.check(owner, Ending(code, ""))
    calls = strace.calls_on(restored(), lambda: do() & FAILED, log)
    assert {"openat", "read", "close"} <= {call.name for call in calls}
    points = [(call, fault) for call in calls for fault in faults_at(call, work.lies)][::every]
    outcomes: Counter[tuple[str, str, str]] = Counter()
    failures = []
    for call, fault in points:
        ending = strace.with_fault(restored(), do, call, fault, log)
        try:
            assert ending.code != CRASHED, ending.crash
            outcome = work.check(owner, ending)
        except (AssertionError, StorageError) as error:
            failures.append(f"{fault} at {call.name} {call.number} ({call.text[:200]}): {error}")
            outcome = "LOST OR WRONG"
        kind = "lie" if fault.startswith("retval") else fault.partition("=")[2]
        said = "killed" if ending.code is None else "said" if ending.code & FAILED else "no harm done"
        outcomes[kind, said, outcome] += 1
    owner.release()
    print(f"\n{len(calls)} system calls, {len(points)} faults")
    print("\n".join(f"{count:6}  {', '.join(words)}" for words, count in sorted(outcomes.items())))
    assert not failures, "\n".join([f"{len(failures)} of {len(points)} faults", *failures])


@pytest.mark.parametrize("name", WORKS)
def test_a_sample_of_faults_loses_nothing(tmp_path: Path, name: str) -> None:
    sweep(WORKS[name], tmp_path, SAMPLE)


@pytest.mark.soak
@pytest.mark.parametrize("name", WORKS)
def test_a_fault_at_every_system_call_loses_nothing(tmp_path: Path, name: str) -> None:
    sweep(WORKS[name], tmp_path, every=1)
