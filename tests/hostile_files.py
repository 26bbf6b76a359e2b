"""Hostile data sets, and the three readers that they are put before: of shards, of metrics and of data files."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from damage import forge

from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.errors import DataError, StorageError
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import merge, write_manifest
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.seal import seal_of
from parse_mpi.storage.shard import AgentArray, write_shard

ROWS, WIDTH = 8, 4
SECRET = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
PEBI = 1 << 50

Make = Callable[[Any, str, Path], object]


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
