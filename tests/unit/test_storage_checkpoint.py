"""Checkpoints: the same rows come back by agent id on any number of ranks, and nothing damaged is ever loaded."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pytest
from damage import flip, forge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from saves import save_now

from parse_mpi.errors import StorageError
from parse_mpi.storage import shard
from parse_mpi.storage.checkpoint import load_newest, open_checkpoint
from parse_mpi.storage.manifest import from_ranges, read_manifest, to_ranges
from parse_mpi.storage.saver import SaveRecord
from parse_mpi.storage.shard import AgentArray

Result = TypeVar("Result")
Ids = NDArray[np.int64]
HEADER: Mapping[str, Any] = {"job_digest": "ab", "learning": {"lr": 0.1}}


class ThreadWorld:
    """A world whose ranks are threads; values travel as JSON text, as they do over MPI."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]):
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def gather_json(self, value: Any) -> list[Any] | None:
        self._board[self.rank] = json.dumps(value)
        self._barrier.wait()
        values = [json.loads(text) for text in self._board] if self.rank == 0 else None
        self._barrier.wait()
        return values

    def broadcast_json(self, value: Any) -> Any:
        if self.rank == 0:
            self._board[0] = json.dumps(value)
        self._barrier.wait()
        received = json.loads(self._board[0])
        self._barrier.wait()
        return received


def on_ranks(size: int, work: Callable[[ThreadWorld], Result]) -> list[Result]:
    barrier, board = threading.Barrier(size, timeout=10), [None] * size
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, [ThreadWorld(rank, size, barrier, board) for rank in range(size)]))


def ids(*agents: int) -> Ids:
    return np.array(agents, dtype=np.int64)


def rows(agents: Ids, round_index: int = 0, width: int = 4) -> NDArray[np.float32]:
    """A row that tells its agent and round."""
    return (agents[:, None] + 1000 * round_index + np.arange(width) / 100).astype(np.float32)


NAME = "slices/encoder[top]/parameters"


def save(
    run_dir: Path, round_index: int, shards: Sequence[Ids], keep: int = 2, width: int = 4, header: Any = HEADER
) -> SaveRecord:
    """Save `rows` of the agents of each shard; all ranks must tell the same story."""
    records = on_ranks(
        len(shards),
        lambda world: save_now(
            world,
            run_dir,
            round_index,
            [AgentArray(NAME, shards[world.rank], rows(shards[world.rank], round_index, width))],
            header,
            keep,
        ),
    )
    assert len({(record.committed, record.reason, record.size_bytes) for record in records}) == 1
    return records[0]


def saved_rounds(run_dir: Path) -> list[str]:
    return sorted(entry.name for entry in (run_dir / "checkpoints").iterdir())


# -- what was saved comes back ---------------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Agents dealt to 1..4 ranks in any way, the holders of a slice among them, and an order to read them in."""
    owners = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    holds = draw(st.lists(st.booleans(), min_size=len(owners), max_size=len(owners)))
    size = max(owners) + 1
    everyone = [[agent for agent, owner in enumerate(owners) if owner == rank] for rank in range(size)]
    holders = [[agent for agent in agents if holds[agent]] for agents in everyone]
    wanted = draw(st.permutations([agent for agents in holders for agent in agents]))
    return everyone, holders, wanted[: draw(st.integers(0, len(wanted)))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds(), st.sampled_from(["<f4", "<f8", "<i8", "|u1", "|b1"]), st.sampled_from([(), (3,), (2, 2)]))
def test_rows_come_back_by_agent(
    tmp_path_factory: pytest.TempPathFactory,
    world_layout: tuple[list[list[int]], list[list[int]], list[int]],
    dtype: str,
    shape: tuple[int, ...],
) -> None:
    everyone, holders, wanted = world_layout
    run_dir = tmp_path_factory.mktemp("run")
    truth = np.random.default_rng(0).integers(0, 2**40, (12, *shape)).astype(dtype)
    steps = np.arange(12) * 7

    def work(world: ThreadWorld) -> SaveRecord:
        mine, held = ids(*everyone[world.rank]), ids(*holders[world.rank])
        arrays = [
            AgentArray("slices/f_r/parameters", held, truth[held]),
            AgentArray("slices/f_r/momentum", held, truth[held][::-1].copy()[::-1]),
            AgentArray("agents/steps", mine, steps[mine]),
        ]
        return save_now(world, run_dir, 5, arrays, HEADER, keep=2)

    assert all(record.committed for record in on_ranks(len(everyone), work))
    checkpoint, rejections = load_newest(run_dir)
    assert checkpoint is not None
    assert rejections == []
    assert (checkpoint.round_index, checkpoint.header) == (5, HEADER)
    assert checkpoint.names() == ["agents/steps", "slices/f_r/momentum", "slices/f_r/parameters"]
    assert checkpoint.agents_of("slices/f_r/parameters").tolist() == sorted(chain.from_iterable(holders))
    for name in ("slices/f_r/parameters", "slices/f_r/momentum"):
        read = checkpoint.read(name, ids(*wanted))
        assert (read.dtype, read.shape) == (np.dtype(dtype), (len(wanted), *shape))
        np.testing.assert_array_equal(read, truth[wanted])
    backwards = ids(*reversed(range(sum(map(len, everyone)))))
    np.testing.assert_array_equal(checkpoint.read("agents/steps", backwards), steps[backwards])


def test_a_shard_is_plain_hdf5(tmp_path: Path) -> None:
    save(tmp_path, 7, [ids(0, 1), ids(4, 9)])
    with h5py.File(tmp_path / "checkpoints" / "round-000007" / "shard-0001.h5") as file:
        assert file.attrs["round"] == 7
        np.testing.assert_array_equal(file["slices/encoder[top]/agents"], [4, 9])
        np.testing.assert_array_equal(file[NAME], rows(ids(4, 9), 7))


def test_the_manifest_tells_sizes_and_digests(tmp_path: Path) -> None:
    record = save(tmp_path, 7, [ids(0, 1), ids(4, 9)])
    directory = tmp_path / "checkpoints" / "round-000007"
    manifest = json.loads((directory / "manifest.json").read_text())
    for entry in manifest["shards"]:
        content = (directory / entry["file"]).read_bytes()
        assert (entry["size_bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert record.size_bytes == sum(entry["size_bytes"] for entry in manifest["shards"])
    parts = manifest["arrays"][NAME]["parts"]
    assert [part["agents"] for part in parts] == [[[0, 1]], [[4, 4], [9, 9]]]
    assert parts[1]["sha256"] == hashlib.sha256(rows(ids(4, 9), 7).tobytes()).hexdigest()


@given(st.sets(st.integers(0, 60)))
def test_ranges_and_ids_are_the_same_thing(agents: set[int]) -> None:
    ascending = ids(*sorted(agents))
    ranges = to_ranges(ascending)
    np.testing.assert_array_equal(from_ranges(ranges), ascending)
    assert all(ranges[i + 1][0] > ranges[i][1] + 1 for i in range(len(ranges) - 1))


def test_asking_for_what_is_not_there(tmp_path: Path) -> None:
    save(tmp_path, 1, [ids(0, 1), ids(4)])
    checkpoint = open_checkpoint(tmp_path, 1)
    with pytest.raises(StorageError, match=r"no slices/encoder\[top\]/parameters of agent 3"):
        checkpoint.read(NAME, ids(0, 3, 4))
    with pytest.raises(StorageError, match="no array slices/f_s/parameters; there are"):
        checkpoint.read("slices/f_s/parameters", ids(0))
    with pytest.raises(StorageError, match="never finished"):
        open_checkpoint(tmp_path, 2)
    assert load_newest(tmp_path / "elsewhere") == (None, [])


@pytest.mark.parametrize(
    ("name", "agents", "width"),
    [("parameters", [0], 1), ("slices/x/agents", [0], 1), ("a/b", [1, 0], 2), ("a/b", [0, 0], 2), ("a/b", [0, 1], 3)],
)
def test_arrays_that_make_no_sense_are_refused(name: str, agents: list[int], width: int) -> None:
    with pytest.raises(ValueError, match=name):
        AgentArray(name, ids(*agents), np.zeros(width))


def test_a_group_has_one_set_of_agents(tmp_path: Path) -> None:
    arrays = [AgentArray("s/a", ids(0, 1), np.zeros(2)), AgentArray("s/b", ids(0, 2), np.zeros(2))]
    with pytest.raises(ValueError, match="s/b: arrays of one group"):
        on_ranks(1, lambda world: save_now(world, tmp_path, 1, arrays, {}, 2))
    with pytest.raises(ValueError, match="same name"):
        on_ranks(1, lambda world: save_now(world, tmp_path, 1, [arrays[0], arrays[0]], {}, 2))
    with pytest.raises(ValueError, match="Out of range float"):
        on_ranks(1, lambda world: save_now(world, tmp_path, 1, arrays[:1], {"loss": float("nan")}, 2))
    assert list(tmp_path.iterdir()) == []


# -- an attempt that fails -------------------------------------------------------------------------------------------


def test_one_rank_that_fails_abandons_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, [ids(0), ids(1), ids(2)])
    write = shard.write_hdf5

    def failing(path: Path, *args: Any) -> Any:
        if path.name == "shard-0002.h5":
            raise StorageError("disk full")
        return write(path, *args)

    monkeypatch.setattr(shard, "write_hdf5", failing)
    record = save(tmp_path, 2, [ids(0), ids(1), ids(2)])
    assert (record.committed, record.reason) == (False, "rank 2: disk full")
    assert saved_rounds(tmp_path) == ["round-000001"]
    monkeypatch.undo()
    assert save(tmp_path, 3, [ids(0), ids(1), ids(2)]).committed


def test_a_directory_that_cannot_be_made_abandons_all(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    record = save(tmp_path, 1, [ids(0), ids(1)])
    assert not record.committed
    assert "File exists" in record.reason


def test_ranks_that_contradict_each_other_are_found_out(tmp_path: Path) -> None:
    record = save(tmp_path, 1, [ids(0, 1), ids(1, 2)])
    assert not record.committed
    assert "agent 1 has a row on more than one rank" in record.reason

    def different_widths(world: ThreadWorld) -> SaveRecord:
        arrays = [AgentArray(NAME, ids(world.rank), np.zeros((1, 3 + world.rank)))]
        return save_now(world, tmp_path, 1, arrays, {}, 2)

    assert "<f8 [3] on one rank, <f8 [4] on another" in on_ranks(2, different_widths)[0].reason
    assert saved_rounds(tmp_path) == []


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    for name in (".round-000001.tmp", ".round-000009.1a2b3c4d.tmp", ".round-000002.old.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "shard-0007.h5").write_text("half")
    save(tmp_path, 1, [ids(0)])
    assert saved_rounds(tmp_path) == ["round-000001"]
    assert not (tmp_path / "checkpoints" / "round-000001" / "shard-0007.h5").exists()


def test_leftovers_do_not_keep_the_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = shard.write_hdf5

    def on_a_small_disk(path: Path, arrays: Mapping[str, Any], *more: Any) -> Any:
        held = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        if held + sum(values.nbytes for values in arrays.values()) > 200_000:
            raise StorageError("disk full")
        return write(path, arrays, *more)

    monkeypatch.setattr(shard, "write_hdf5", on_a_small_disk)
    killed = tmp_path / "checkpoints" / ".round-000001.1a2b3c4d.tmp"
    killed.mkdir(parents=True)
    (killed / "shard-0000.h5").write_bytes(bytes(150_000))
    assert save(tmp_path, 1, [ids(0)], width=20_000).committed


# -- which checkpoints stay ------------------------------------------------------------------------------------------


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for round_index in (1, 2, 3, 4):
        save(tmp_path, round_index, [ids(0), ids(1)], keep=3)
    assert saved_rounds(tmp_path) == ["round-000002", "round-000003", "round-000004"]


def test_retention_counts_neither_what_is_damaged_nor_what_is_later(tmp_path: Path) -> None:
    for round_index in (1, 2, 3, 9):
        save(tmp_path, round_index, [ids(0), ids(1)], keep=9)
    (tmp_path / "checkpoints" / "round-000003" / "shard-0001.h5").unlink()
    save(tmp_path, 4, [ids(0), ids(1)], keep=2)
    assert saved_rounds(tmp_path) == ["round-000002", "round-000003", "round-000004", "round-000009"]
    save(tmp_path, 5, [ids(0), ids(1)], keep=2)
    assert saved_rounds(tmp_path) == ["round-000004", "round-000005", "round-000009"]


def test_checkpoints_that_can_not_be_read_for_a_moment_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise StorageError(f"{path}: can't be read: Too many open files")

    for round_index in (1, 2):
        save(tmp_path, round_index, [ids(0), ids(1)], keep=2)
    with monkeypatch.context() as patch:
        patch.setattr("parse_mpi.storage.commit.Checkpoint", fail)
        save(tmp_path, 3, [ids(0), ids(1)], keep=2)
    assert saved_rounds(tmp_path) == ["round-000001", "round-000002", "round-000003"]


def test_a_damaged_round_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5, [ids(0), ids(1)], width=4)
    flip(tmp_path / "checkpoints" / "round-000005" / "shard-0001.h5", -1)
    record = save(tmp_path, 5, [ids(0), ids(1)], width=6)
    assert (record.committed, record.reason) == (True, "")
    assert saved_rounds(tmp_path) == ["round-000005"]
    assert open_checkpoint(tmp_path, 5).read(NAME, ids(1)).shape == (1, 6)


# -- damage ----------------------------------------------------------------------------------------------------------


def test_flipped_bits_of_a_shard_are_rejected(tmp_path: Path) -> None:
    save(tmp_path, 1, [ids(0, 1)])
    save(tmp_path, 2, [ids(0, 1)])
    damaged = tmp_path / "checkpoints" / "round-000002" / "shard-0000.h5"
    for position in range(0, damaged.stat().st_size, 29):
        flip(damaged, position, position % 8)
        checkpoint, rejections = load_newest(tmp_path)
        assert checkpoint is not None
        assert checkpoint.round_index == 1
        assert [rejection.path.name for rejection in rejections] == ["round-000002"]
        assert "shard-0000.h5: was damaged" in rejections[0].reason
        flip(damaged, position, position % 8)
    assert load_newest(tmp_path)[1] == []


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_rejected(tmp_path: Path) -> None:
    save(tmp_path, 2, [ids(0, 1)])
    path = tmp_path / "checkpoints" / "round-000002" / "manifest.json"
    for position in range(path.stat().st_size):
        flip(path, position, bit=position % 8)
        with pytest.raises(StorageError, match=r"manifest\.json"):
            read_manifest(path.parent)
        flip(path, position, bit=position % 8)
    assert read_manifest(path.parent).round == 2


def test_truncated_missing_and_misplaced_files_are_rejected(tmp_path: Path) -> None:
    for round_index in (1, 2, 3, 4):
        save(tmp_path, round_index, [ids(0), ids(1)], keep=9)
    directory = tmp_path / "checkpoints"
    with open(directory / "round-000004" / "shard-0001.h5", "r+b") as file:
        file.truncate(100)
    (directory / "round-000003" / "manifest.json").unlink()
    (directory / "round-000002").rename(directory / "round-000077")
    checkpoint, rejections = load_newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.round_index == 1
    assert [rejection.path.name for rejection in rejections] == ["round-000077", "round-000004", "round-000003"]
    for rejection, reason in zip(rejections, ("is of round 2", "100 bytes", "never finished"), strict=True):
        assert reason in rejection.reason


def test_when_nothing_can_be_trusted_the_reasons_say_so(tmp_path: Path) -> None:
    save(tmp_path, 1, [ids(0)])
    (tmp_path / "checkpoints" / "round-000001" / "shard-0000.h5").unlink()
    checkpoint, rejections = load_newest(tmp_path)
    assert checkpoint is None
    assert len(rejections) == 1


def test_a_reader_checks_the_shards_that_it_reads(tmp_path: Path) -> None:
    save(tmp_path, 1, [ids(0), ids(1)])
    flip(tmp_path / "checkpoints" / "round-000001" / "shard-0001.h5", 2000)
    checkpoint = open_checkpoint(tmp_path, 1)
    np.testing.assert_array_equal(checkpoint.read(NAME, ids(0)), rows(ids(0), 1))
    with pytest.raises(StorageError, match=r"shard-0001\.h5: was damaged"):
        checkpoint.read(NAME, ids(0, 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body["shards"][0].update(file="../../../etc/passwd"), "not a manifest"),
        (lambda body: body["arrays"][NAME].update(dtype="|O8"), "not a manifest"),
        (lambda body: body["arrays"][NAME]["parts"][0].update(shard=8), "names shard 8"),
        (lambda body: body["arrays"][NAME].update(shape=[2]), "not the array that the manifest describes"),
        (lambda body: body.update(format_version=3), "format version 3 is newer than this parse-mpi"),
        (lambda body: body.update(format_version=True), "not a manifest: format version True"),
    ],
)
def test_a_forged_manifest_is_rejected(tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    save(tmp_path, 1, [ids(0)])
    forge(tmp_path / "checkpoints" / "round-000001", change)
    with pytest.raises(StorageError, match=reason):
        open_checkpoint(tmp_path, 1).read(NAME, ids(0))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{", "[" * 100_000, "\x00", '{"manifest_sha256": 1}'])
def test_what_is_no_manifest_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StorageError, match=r"manifest\.json"):
        read_manifest(tmp_path)
