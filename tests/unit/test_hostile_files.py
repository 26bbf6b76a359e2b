"""Files from strangers: none makes parse_mpi read another file, unpickle or fill the memory, and no damage goes unseen.

Every hostile file here is read three times: as a shard, whose manifest vouches for it; as metrics, sealed by its
forger; and as a data file. Where the danger is that h5py reads another file, that is shown first.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from parse_mpi.data import hdf5
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.memory import memory_ceiling
from parse_mpi.errors import DataError, StorageError
from parse_mpi.storage import manifest as manifests
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import canonical_json, merge, read_manifest, write_manifest
from parse_mpi.storage.metrics import read_metrics, write_segment
from parse_mpi.storage.rundir import LARGEST_STATE_BYTES, RunDirectory
from parse_mpi.storage.seal import SEAL_BYTES, seal_of
from parse_mpi.storage.shard import AgentArray, write_shard
from parse_mpi.storage.write import write_hdf5

ROWS, WIDTH = 8, 4
SECRET = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
PEBI = 1 << 50
CHILD_BYTES = 512 << 20

Make = Callable[[Any, str, Path], object]
Read = Callable[[Path], object]


# -- hostile files ---------------------------------------------------------------------------------------------------


def external_storage(file: Any, name: str, folder: Path) -> None:
    (folder / "secret").write_bytes(SECRET.tobytes())
    file.create_dataset(name, SECRET.shape, SECRET.dtype, external=[(folder / "secret", 0, SECRET.nbytes)])


def external_link(file: Any, name: str, folder: Path) -> None:
    file[name] = h5py.ExternalLink(other_file(folder), "/x")


def external_group(file: Any, name: str, folder: Path) -> None:
    group, _, last = name.rpartition("/")
    other_file(folder, last)
    file[group] = h5py.ExternalLink(folder / "other.h5", "/")


def soft_link_to_an_external_link(file: Any, name: str, folder: Path) -> None:
    file["away"] = h5py.ExternalLink(other_file(folder), "/x")
    file[name] = h5py.SoftLink("/away")


def virtual(file: Any, name: str, folder: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, SECRET.dtype)
    layout[:] = h5py.VirtualSource(other_file(folder), "x", shape=SECRET.shape)
    file.create_virtual_dataset(name, layout)


def other_file(folder: Path, name: str = "x") -> Path:
    with h5py.File(folder / "other.h5", "w") as other:
        other[name] = SECRET
    return folder / "other.h5"


def unallocated(file: Any, name: str, folder: Path) -> None:
    file.create_dataset(name, (ROWS, PEBI), np.float32)


def no_chunks(file: Any, name: str, folder: Path) -> None:
    file.create_dataset(name, (ROWS, PEBI), np.float32, chunks=(1, 1 << 20))


def count_that_overflows(file: Any, name: str, folder: Path) -> None:
    file.create_dataset(name, (1 << 32, 1 << 32), np.float32, chunks=(1, 1 << 20))


def few_chunks(file: Any, name: str, folder: Path) -> None:
    file.create_dataset(name, (ROWS, PEBI), np.float32, chunks=(1, 1 << 20), compression="gzip")[0, 0] = 1


def pickles(file: Any, name: str, folder: Path) -> None:
    array = file.create_dataset(name, (ROWS,), h5py.vlen_dtype(np.uint8))
    array[0] = np.frombuffer(pickle.dumps(os.system), np.uint8)


def opaque(file: Any, name: str, folder: Path) -> None:
    file[name] = np.zeros(ROWS, "V16")


def compound(file: Any, name: str, folder: Path) -> None:
    file[name] = np.zeros(ROWS, [("a", "f4"), ("b", "i4")])


def references(file: Any, name: str, folder: Path) -> None:
    file.create_dataset(name, (ROWS,), h5py.ref_dtype)[0] = file.ref


def named_type(file: Any, name: str, folder: Path) -> None:
    file[name] = np.dtype("f4")


def nothing(file: Any, name: str, folder: Path) -> None:
    file[name] = h5py.Empty("f4")


def cycle(file: Any, name: str, folder: Path) -> None:
    file[name] = file["/"]


FOREIGN: list[tuple[Make, str]] = [
    (external_storage, "its values lie in other files"),
    (external_link, "is a link"),
    (external_group, "is a link"),
    (soft_link_to_an_external_link, "is a link"),
    (virtual, "its values lie in other files"),
]
BOMBS: list[tuple[Make, str]] = [
    (unallocated, "no values were ever written"),
    (no_chunks, "no values were ever written"),
    (count_that_overflows, "no values were ever written"),
    (few_chunks, "only 1 of its 8589934592 chunks were ever written"),
]
KINDS: list[tuple[Make, str]] = [
    (pickles, "has type object; a .* is expected"),
    (opaque, r"has type \|V16; a .* is expected"),
    (compound, "has type .*; a .* is expected"),
    (references, "has type object; a .* is expected"),
    (named_type, "not a data set"),
    (nothing, "no values were ever written"),
]


# -- three readers ---------------------------------------------------------------------------------------------------


class Target:
    """A place for a hostile data set: where its file lies, what it is called there, and who reads it."""

    name: str
    error: type[Exception]

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "hostile.h5"

    def build(self, make: Make, libver: str = "earliest") -> None:
        with h5py.File(self.path, "w", libver=libver) as file:
            make(file, self.name, self.folder)
            self.finish(file)

    def finish(self, file: Any) -> None:
        """Add what the reader wants to see besides."""

    def read(self) -> object:
        raise NotImplementedError


class Shard(Target):
    name, error = "slices/s/parameters", StorageError

    def __init__(self, folder: Path):
        self.directory = small_checkpoint(folder)
        self.path = self.directory / "shard-0000.h5"
        self.folder = folder

    def read(self) -> object:
        forge(self.directory, lambda body: body["shards"][0].update(digest_of(self.path)))
        return Checkpoint(self.directory).read(self.name, np.arange(ROWS))


class MetricsFile(Target):
    name, error = "rounds/loss", StorageError

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.path = folder / "metrics.h5"

    def finish(self, file: Any) -> None:
        file.attrs.update(format="parse-mpi metrics", format_version=2)

    def read(self) -> object:
        content = self.path.read_bytes()
        self.path.write_bytes(content + bytes(seal_of([memoryview(content)])))
        return read_metrics(self.folder)


class DataFile(Target):
    name, error = "modalities/x", DataError

    def finish(self, file: Any) -> None:
        file["labels"], file["split"] = np.arange(ROWS) % 2, np.zeros(ROWS, np.uint8)

    def read(self) -> object:
        return read_dataset(self.path, "lazy")


TARGETS = [Shard, MetricsFile, DataFile]


@pytest.fixture(params=TARGETS, ids=lambda target: target.__name__)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return request.param(tmp_path)


def small_checkpoint(folder: Path) -> Path:
    """A sound checkpoint of 8 agents in one shard; holds SECRET's shape and zeros."""
    directory = folder / "checkpoints" / "round-000003"
    directory.mkdir(parents=True)
    arrays = [AgentArray(Shard.name, np.arange(ROWS), np.zeros_like(SECRET))]
    write_manifest(directory, merge(3, {"job_digest": "ab"}, [write_shard(directory, 0, 3, arrays)]))
    return directory


def digest_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def forge(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest and give it a fitting digest."""
    body = json.loads((directory / "manifest.json").read_text())
    del body["manifest_sha256"]
    change(body)
    body["manifest_sha256"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(body))


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


# -- every byte ------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_shard_is_detected(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)
    checkpoint = Checkpoint(directory)
    for _ in flipped(directory / "shard-0000.h5", bits=[3]):
        with pytest.raises(StorageError, match=r"shard-0000\.h5: was damaged"):
            checkpoint.verify()
    np.testing.assert_array_equal(checkpoint.read(Shard.name, np.arange(ROWS)), np.zeros_like(SECRET))


def test_every_flipped_bit_of_a_manifest_is_detected(tmp_path: Path) -> None:
    directory = small_checkpoint(tmp_path)
    for _ in flipped(directory / "manifest.json", bits=range(8)):
        with pytest.raises(StorageError, match=r"manifest\.json"):
            read_manifest(directory)


def test_every_flipped_byte_of_metrics_is_detected(tmp_path: Path) -> None:
    """Text of attributes as well, over which HDF5 has no checksum."""
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {"rounds/loss": {"term": ["total", "heads"]}})
    path = tmp_path / "metrics" / "round-000002.h5"
    for _ in flipped(path, bits=[3]):
        with pytest.raises(StorageError, match=r"round-000002\.h5"):
            read_metrics(tmp_path)
    assert read_metrics(tmp_path).attributes["rounds/loss"] == {"term": ["total", "heads"]}


def test_metrics_without_their_seal_are_refused(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {})
    path = tmp_path / "metrics" / "round-000002.h5"
    path.write_bytes(path.read_bytes()[:-SEAL_BYTES])
    with pytest.raises(StorageError, match="its last line is not the sha256 of the rest"):
        read_metrics(tmp_path)


def test_a_seal_can_be_checked_by_hand_and_hides_nothing_from_h5py(tmp_path: Path) -> None:
    write_segment(tmp_path, 1, 2, {"rounds/loss": SECRET[:2]}, {})
    path = tmp_path / "metrics" / "round-000002.h5"
    content, _, last_line = path.read_bytes().removesuffix(b"\n").rpartition(b"\n")
    assert last_line.decode() == f"parse-mpi sha256 {hashlib.sha256(content).hexdigest()}"
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["rounds/loss"], SECRET[:2])


def test_without_a_seal_text_could_change_in_silence(tmp_path: Path) -> None:
    """Why there are seals: neither HDF5's checksums nor the digests of data sets cover it."""
    path = tmp_path / "bare.h5"
    write_hdf5(path, {"rounds/loss": SECRET}, {"rounds/loss": {"term": ["total", "heads"]}})
    path.write_bytes(path.read_bytes().replace(b"heads", b"headz"))
    with h5py.File(path) as file:
        assert list(file["rounds/loss"].attrs["term"]) == ["total", "headz"]
        np.testing.assert_array_equal(file["rounds/loss"], SECRET)


def flipped(path: Path, bits: Any) -> Iterator[None]:
    """Have these bits of every byte of a file flipped in turn; the file is whole again in the end."""
    content = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            for bit in bits:
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                yield
            os.pwrite(file.fileno(), bytes([byte]), position)
