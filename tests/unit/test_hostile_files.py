"""Files from strangers: none makes parse_mpi read another file, unpickle or fill the memory, and no damage goes unseen.

Every hostile file here is read three times: as a shard, whose manifest vouches for it; as metrics, sealed by its
forger; and as a data file. Where the danger is that h5py reads another file, that is shown first.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import forge
from hostile_files import (
    BOMBS,
    FOREIGN,
    KINDS,
    ROWS,
    SECRET,
    TARGETS,
    DataFile,
    Make,
    MetricsFile,
    Shard,
    Target,
    cycle,
    few_chunks,
    other_file,
    small_checkpoint,
    unallocated,
)

from parse_mpi.data import hdf5
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.memory import memory_ceiling
from parse_mpi.errors import DataError, StorageError
from parse_mpi.storage import manifest as manifests
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import read_manifest, write_manifest
from parse_mpi.storage.rundir import LARGEST_STATE_BYTES, RunDirectory


@pytest.fixture(params=TARGETS, ids=lambda target: target.__name__)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return request.param(tmp_path)


@pytest.mark.parametrize(("make", "message"), FOREIGN, ids=lambda value: getattr(value, "__name__", ""))
def test_no_file_leads_to_another(target: Target, make: Make, message: str) -> None:
    target.build(make)
    with h5py.File(target.path) as file:
        np.testing.assert_array_equal(file[target.name][()], SECRET)  # which plain h5py gives away
    with pytest.raises(target.error, match=message):
        target.read()


@pytest.mark.parametrize(("make", "message"), BOMBS + KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_stored_or_not_plain_is_refused_at_once(target: Target, make: Make, message: str) -> None:
    target.build(make)
    start = time.perf_counter()
    with pytest.raises(target.error, match=message):
        target.read()
    assert time.perf_counter() - start < 1


def test_a_cycle_ends(target: Target) -> None:
    target.build(cycle)
    with pytest.raises(target.error, match=f"{target.name}: (has a second name|not a data set)"):
        target.read()


def test_a_name_with_a_slash_is_no_path(target: Target) -> None:
    """libhdf5 follows it through a link that stands elsewhere."""
    name = f"{target.name.rpartition('/')[0]}/#zway#x"

    def make(file: Any, _: str, folder: Path) -> None:
        file[name] = np.zeros_like(SECRET)
        file["zway"] = h5py.ExternalLink(other_file(folder), "/")

    target.build(make)
    target.path.write_bytes(target.path.read_bytes().replace(b"#zway#x", b"/zway/x"))
    with h5py.File(target.path) as file:
        group = file[target.name.rpartition("/")[0]]
        (listed,) = group
        np.testing.assert_array_equal(group[listed][()], SECRET)
    if isinstance(target, Shard):
        target.name = target.name.rpartition("/")[0] + "//zway/x"
        forge(target.directory, lambda body: body["arrays"].update({target.name: body["arrays"].pop(Shard.name)}))
    with pytest.raises(target.error, match="a name with a slash"):
        target.read()


@pytest.mark.parametrize("target", [Shard, MetricsFile], indirect=True)
def test_data_sets_lie_in_one_piece(target: Target) -> None:
    target.build(lambda file, name, _: file.create_dataset(name, data=SECRET, chunks=(2, 2)))
    with pytest.raises(StorageError, match="don't lie in one piece"):
        target.read()


def test_values_beyond_the_end_of_the_file_are_refused(target: Target) -> None:
    target.build(lambda file, name, _: file.create_dataset(name, data=SECRET))
    with h5py.File(target.path) as file:
        placed = struct.pack("<QQ", file[target.name].id.get_offset(), SECRET.nbytes)
    content = target.path.read_bytes()
    assert content.count(placed) == 1
    beyond = struct.pack("<QQ", len(content) - SECRET.nbytes + 1, SECRET.nbytes)
    target.path.write_bytes(content.replace(placed, beyond))
    with pytest.raises(target.error, match=r"beyond the end of the file|can't be opened"):
        target.read()


def test_data_sets_that_share_their_bytes_do_not_multiply(tmp_path: Path) -> None:
    ones, copies = np.ones(4096), [f"rounds/copy{index}" for index in range(30)]

    def make(file: Any, name: str, _: Path) -> None:
        file[name] = ones
        for copy in copies:
            file.create_dataset(copy, ones.shape, ones.dtype)

    metrics = MetricsFile(tmp_path)
    metrics.build(make)
    with h5py.File(metrics.path) as file:
        offset = file[metrics.name].id.get_offset()
    nowhere, there = (struct.pack("<QQ", place, ones.nbytes) for place in ((1 << 64) - 1, offset))
    metrics.path.write_bytes(metrics.path.read_bytes().replace(nowhere, there))
    with h5py.File(metrics.path) as file:
        assert all((file[copy][()] == ones).all() for copy in copies)
    with pytest.raises(StorageError, match=r"declares 1,015,808 bytes of data and has"):
        metrics.read()


def test_a_file_cut_short_is_refused(target: Target) -> None:
    target.build(lambda file, name, _: file.create_dataset(name, data=SECRET))
    content = target.path.read_bytes()
    for size in range(0, len(content), 97):
        target.path.write_bytes(content[:size])
        with pytest.raises(target.error):
            target.read()


# -- attributes ------------------------------------------------------------------------------------------------------


def build_text_bomb(target: Target) -> None:
    """Class names that share one megabyte, 60,000 of them: 3 MB in the file, 60 GB in memory."""
    count, length = 60_000, 1_000_003

    def make(file: Any, name: str, _: Path) -> None:
        file[name] = SECRET
        texts = np.array(["x" * length] + ["y"] * (count - 1), dtype=object)
        file.attrs.create("class_names", texts, dtype=h5py.string_dtype())

    target.build(make, libver="latest")
    content = bytearray(target.path.read_bytes())
    start = content.index(struct.pack("<I", length))
    content[start : start + 16 * count] = content[start : start + 16] * count
    target.path.write_bytes(content)


@pytest.mark.parametrize(
    ("target", "message"),
    [(MetricsFile, "attribute class_names can't be read"), (DataFile, "attribute class_names: not a list of texts")],
    indirect=["target"],
)
def test_texts_that_share_their_bytes_do_not_multiply(target: Target, message: str) -> None:
    build_text_bomb(target)
    with pytest.raises(target.error, match=message):
        target.read()


def lists_of_numbers() -> Any:
    lists = np.empty(1, dtype=object)
    lists[0] = np.arange(3)
    return lists


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.attrs.create("x", lists_of_numbers(), dtype=h5py.vlen_dtype(int)),
        lambda file: file.attrs.create("x", file.ref, dtype=h5py.ref_dtype),
        lambda file: file.attrs.create("x", np.zeros(2, "f4,i4")),
        lambda file: file.attrs.create("x", h5py.Empty("f4")),
    ],
)
def test_attributes_are_numbers_and_text(tmp_path: Path, change: Callable[[Any], object]) -> None:
    metrics = MetricsFile(tmp_path)
    metrics.build(lambda file, name, _: change(file))
    with pytest.raises(StorageError, match="/: attribute x is neither a number nor text"):
        metrics.read()


def test_a_ceiling_holds_inside_its_block_only() -> None:
    with memory_ceiling(64 << 20):
        small = bytearray(16 << 20)
        with pytest.raises(MemoryError):
            bytearray(256 << 20)
    assert len(small) + len(bytearray(256 << 20)) == 272 << 20


# -- memory ----------------------------------------------------------------------------------------------------------

CHILD_BYTES = 512 << 20
READ_IN_A_CHILD = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import h5py, test_hostile_files as tests

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + tests.CHILD_BYTES, -1))
for target in tests.bombs(Path(sys.argv[1])):
    with h5py.File(target.path) as file:
        for read in (lambda: (file[target.name][()], file.attrs["class_names"]), target.read):
            try:
                read()
            except MemoryError:
                print("MemoryError", end=" ")
            except Exception as error:
                print(type(error).__name__, end=" ")
    print()
"""


def bombs(folder: Path) -> list[Target]:
    """A file of each kind that declares more than any memory holds."""
    targets = []
    for kind in TARGETS:
        for make in (unallocated, few_chunks):
            place = folder / kind.__name__ / make.__name__
            place.mkdir(parents=True)
            targets.append(kind(place))
            targets[-1].build(make)
    for kind in (MetricsFile, DataFile):
        targets.append(kind(folder / kind.__name__))
        build_text_bomb(targets[-1])
    return targets


def test_no_declared_size_fills_the_memory(tmp_path: Path) -> None:
    """In a process of its own with 512 MiB to spare, while h5py asks for more."""
    told = subprocess.run(
        [sys.executable, "-c", READ_IN_A_CHILD, tmp_path, *sys.path],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    errors = [*["StorageError"] * 4, *["DataError"] * 2, "StorageError", "DataError"]
    of_h5py = [*["MemoryError"] * 6, *["OSError"] * 2]
    assert [tuple(line.split()) for line in told.stdout.splitlines()] == [*zip(of_h5py, errors, strict=True)]


def test_what_does_not_fit_into_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataFile(tmp_path)
    data.build(lambda file, name, _: file.create_dataset(name, data=np.zeros((ROWS, 1 << 16), np.float32)))
    assert len(read_dataset(data.path).modalities["x"]) == ROWS
    monkeypatch.setattr("parse_mpi.data.hdf5_values.available_bytes", lambda: 2_000_000)
    with pytest.raises(DataError, match=r"/modalities/x: takes 2,097,152 bytes of memory, of which 2,000,000 are"):
        read_dataset(data.path)
    monkeypatch.setattr(hdf5, "available_bytes", lambda: 262_143)
    with pytest.raises(DataError, match="/modalities/x: one sample takes 262,144 bytes to read"):
        read_dataset(data.path, "lazy")


# -- JSON, YAML and the names of files -------------------------------------------------------------------------------


def first_array(body: dict[str, Any]) -> dict[str, Any]:
    return body["arrays"][Shard.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: first_array(body).update(shape=[1 << 60]), "has more bytes than shard-0000.h5"),
        (lambda body: first_array(body).update(dtype="<f3"), "not a manifest"),
        (lambda body: first_array(body)["parts"][0].update(agents=[[0, 1 << 60]]), "ids must ascend"),
        (lambda body: first_array(body)["parts"][0].update(agents=[[0, 1 << 20]]), "has more bytes than shard-0000.h5"),
        (lambda body: first_array(body)["parts"][0].update(agents=[[5, 7], [0, 4]]), "ids must ascend"),
        (lambda body: first_array(body)["parts"].append(first_array(body)["parts"][0]), "ids must ascend"),
        (lambda body: first_array(body)["parts"][0].update(shard=1), "names shard 1, which the manifest does not list"),
        (lambda body: body["shards"][0].update(file="../shard-0000.h5"), "not a manifest"),
    ],
)
def test_a_manifest_that_asks_for_too_much_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    directory = small_checkpoint(tmp_path)
    forge(directory, change)
    with pytest.raises(StorageError, match=message):
        read_manifest(directory)


def test_a_size_that_a_manifest_made_up_is_noticed_before_anything_is_allocated(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)

    def change(body: dict[str, Any]) -> None:
        body["shards"][0].update(size_bytes=1 << 60)
        first_array(body).update(shape=[1 << 50])

    forge(directory, change)
    with pytest.raises(StorageError, match=r"shard-0000\.h5: has \d+ bytes, the manifest says 1152921504606846976"):
        Checkpoint(directory).read(Shard.name, np.arange(ROWS))


def test_a_manifest_larger_than_any_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = small_checkpoint(tmp_path)
    manifest = read_manifest(directory)
    monkeypatch.setattr(manifests, "LARGEST_MANIFEST_BYTES", 100)
    with pytest.raises(StorageError, match=r"manifest\.json: larger than 100 bytes"):
        read_manifest(directory)
    with pytest.raises(StorageError, match=r"manifest\.json: would have"):
        write_manifest(directory, manifest)


def test_a_state_larger_than_any_is_not_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.state_path.write_text(" " * LARGEST_STATE_BYTES + '{"round": 1, "rounds": 2, "status": "stopped"}')
    with pytest.raises(StorageError, match=r"state\.json: larger than 1,048,576 bytes"):
        run.read_state()


@pytest.mark.parametrize("name", ["shard-0000.h5", "manifest.json"])
def test_a_symbolic_link_is_no_file_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    directory = small_checkpoint(tmp_path)
    (directory / name).rename(tmp_path / name)
    (directory / name).symlink_to(tmp_path / name)
    with pytest.raises(StorageError, match=f"{name}: is a symbolic link; put the file itself there"):
        Checkpoint(directory).read(Shard.name, np.arange(ROWS))


def test_a_named_pipe_does_not_make_a_reader_wait(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)
    for name in ("shard-0000.h5", "manifest.json"):
        (directory / name).unlink()
        os.mkfifo(directory / name)
        with pytest.raises(StorageError, match=f"{name}: is no plain file"):
            Checkpoint(directory).read(Shard.name, np.arange(ROWS))


def test_merge_keys_do_not_multiply(tmp_path: Path) -> None:
    from parse_mpi.run.provenance import _launches

    lines = ["- &a0 {x: 1}", *(f"- &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60))]
    path = tmp_path / "provenance.yaml"
    path.write_text("\n".join(lines))
    assert _launches(path) == []
    assert path.with_name("provenance.yaml.broken").read_text().splitlines() == lines
