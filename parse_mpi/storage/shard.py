"""Shards: the HDF5 file of one rank's rows in a checkpoint.

A shard holds a group per slice: /slices/<name>/agents int64[k] (ascending ids) and beside it every array of these
agents, one row each: /slices/<name>/parameters [k, P], /slices/<name>/momentum [k, P].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array, Attributes
from parse_mpi.storage.manifest import FORMAT_VERSION, ArrayEntry, ArrayPart, ShardFile, ShardReport, to_ranges
from parse_mpi.storage.write import sha256_of_file, storage_errors, write_hdf5


@dataclass(frozen=True)
class AgentArray:
    """Rows of some agents: `values` [k, ...] belongs to `agents` int64[k], ascending.

    `name` is "<group>/<array>", say "slices/encoder[top]/parameters" or "agents/steps". Arrays of one group have the
    same agents on a rank. Raises ValueError where this does not hold.
    """

    name: str
    agents: NDArray[np.int64]
    values: Array

    def __post_init__(self) -> None:
        group, _, last = self.name.rpartition("/")
        if not group or last in ("", "agents"):
            raise ValueError(f'{self.name!r}: an array is named "<group>/<array>", and "agents" is for the ids')
        if self.values.shape[:1] != self.agents.shape:
            raise ValueError(f"{self.name}: values of shape {self.values.shape} for {len(self.agents)} agents")
        if (np.diff(self.agents) <= 0).any() or (self.agents < 0).any():
            raise ValueError(f"{self.name}: agent ids must ascend from 0")

    @property
    def agents_name(self) -> str:
        """The data set of the ids that belong to the rows."""
        return self.name.rpartition("/")[0] + "/agents"


def refuse_contradictions(arrays: Sequence[AgentArray]) -> None:
    """Raises ValueError where two arrays have one name, or arrays of one group have different agents."""
    agents: dict[str, NDArray[np.int64]] = {}
    if len({array.name for array in arrays}) != len(arrays):
        raise ValueError("two arrays have the same name")
    for array in arrays:
        if not np.array_equal(agents.setdefault(array.agents_name, array.agents), array.agents):
            raise ValueError(f"{array.name}: arrays of one group must have the same agents")


def write_shard(directory: Path, rank: int, round_index: int, arrays: Sequence[AgentArray]) -> ShardReport:
    """Write shard-<rank>.h5. A failure is part of the report, since the other ranks wait for it."""
    name = f"shard-{rank:04d}.h5"
    content = {array.agents_name: array.agents for array in arrays} | {array.name: array.values for array in arrays}
    attributes: Attributes = {"": {"format": "parse-mpi shard", "format_version": FORMAT_VERSION, "round": round_index}}
    try:
        record = write_hdf5(directory / name, content, attributes)
    except StorageError as error:
        return ShardReport(failure=f"rank {rank}: {error}")
    entries = {
        array.name: ArrayEntry(
            shape=array.values.shape[1:],
            dtype=array.values.dtype.str,
            parts=(ArrayPart(shard=rank, agents=to_ranges(array.agents), sha256=record.arrays[array.name]),),
        )
        for array in arrays
    }
    return ShardReport(shard=ShardFile(file=name, size_bytes=record.size_bytes, sha256=record.sha256), arrays=entries)


def verify_shard(path: Path, expected: ShardFile) -> None:
    """Raises StorageError where the file is not, byte by byte, the one that was written."""
    with storage_errors(path, "can't be read"):
        size_bytes, sha256 = sha256_of_file(path)
    _refuse_other_size(path, size_bytes, expected)
    if sha256 != expected.sha256:
        raise StorageError(f"{path}: was damaged: it does not have the sha256 that the manifest names")


def verify_size(path: Path, expected: ShardFile) -> None:
    """The quick half of verify_shard. Raises StorageError."""
    with storage_errors(path, "can't be read"):
        size_bytes = path.stat().st_size
    _refuse_other_size(path, size_bytes, expected)


def read_rows(path: Path, name: str, entry: ArrayEntry, row_count: int, rows: NDArray[np.int64]) -> Array:
    """These rows of an array of `row_count` rows, read as the one slab that spans them; `rows` is not empty.

    Raises StorageError where the array is not the one that the manifest describes.
    """
    first, last = int(rows.min()), int(rows.max())
    try:
        with h5py.File(path, "r") as file:
            data_set = file[name]
            if data_set.shape != (row_count, *entry.shape) or data_set.dtype != np.dtype(entry.dtype):
                raise StorageError(f"{path}: /{name} is not the array that the manifest describes")
            slab: Array = data_set[first : last + 1]
    except (OSError, RuntimeError, KeyError) as error:
        raise StorageError(f"{path}: /{name} can't be read: {error}") from error
    return slab[rows - first]


def _refuse_other_size(path: Path, size_bytes: int, expected: ShardFile) -> None:
    if size_bytes != expected.size_bytes:
        raise StorageError(f"{path}: has {size_bytes} bytes, the manifest says {expected.size_bytes}")
