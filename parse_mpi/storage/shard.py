"""Shards: the HDF5 file of the rows that one rank writes into a checkpoint, its own or those of all ranks on its node.

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

from parse_mpi.data.hdf5_guard import UNREADABLE, RefusedError, open_contiguous
from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array, Attributes
from parse_mpi.storage.manifest import FORMAT_VERSION, ArrayEntry, ArrayPart, ShardFile, ShardReport, to_ranges
from parse_mpi.storage.read import require_plain_file
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
        return agents_name(self.name)


def agents_name(array_name: str) -> str:
    """The data set of the ids that belong to the rows of an array."""
    return array_name.rpartition("/")[0] + "/agents"


def refuse_contradictions(arrays: Sequence[AgentArray]) -> None:
    """Raises ValueError where two arrays have one name, or arrays of one group have different agents."""
    agents: dict[str, NDArray[np.int64]] = {}
    if len({array.name for array in arrays}) != len(arrays):
        raise ValueError("two arrays have the same name")
    for array in arrays:
        if not np.array_equal(agents.setdefault(array.agents_name, array.agents), array.agents):
            raise ValueError(f"{array.name}: arrays of one group must have the same agents")


def write_shard(directory: Path, writer: int, round_index: int, arrays: Sequence[AgentArray]) -> ShardReport:
    """Write shard-<writer>.h5, `writer` being the rank. A failure is part of the report: the other ranks wait for it.

    A value that is not finite is such a failure: what could not be trained on must not be what a restart begins with.
    """
    name = f"shard-{writer:04d}.h5"
    content = {array.agents_name: array.agents for array in arrays} | {array.name: array.values for array in arrays}
    try:
        for array in arrays:
            refuse_nonfinite(array)
        record = write_hdf5(directory / name, content, shard_attributes(round_index))
    except StorageError as error:
        return ShardReport(failure=f"rank {writer}: {error}")
    entries = {array.name: shard_entry(array.agents, array.values, record.arrays[array.name]) for array in arrays}
    return ShardReport(shard=ShardFile(file=name, size_bytes=record.size_bytes, sha256=record.sha256), arrays=entries)


def shard_entry(agents: NDArray[np.int64], values: Array, sha256: str) -> ArrayEntry:
    """The manifest's entry of an array whose rows `values` of these agents lie in one shard."""
    part = ArrayPart(shard=0, agents=to_ranges(agents), sha256=sha256)
    return ArrayEntry(shape=values.shape[1:], dtype=values.dtype.str, parts=(part,))


def shard_attributes(round_index: int) -> Attributes:
    """The attributes of every shard."""
    return {"": {"format": "parse-mpi shard", "format_version": FORMAT_VERSION, "round": round_index}}


def refuse_nonfinite(array: AgentArray) -> None:
    """Raises StorageError naming the agent."""
    if array.values.dtype.kind != "f":
        return
    for agent, row in zip(array.agents.tolist(), array.values, strict=True):
        if not np.isfinite(row).all():
            raise StorageError(f"agent {agent}: {array.name} is not finite")


def verify_shard(path: Path, expected: ShardFile) -> None:
    """Raises StorageError where the file is not, byte by byte, the one that was written."""
    with storage_errors(path, "can't be read"):
        require_plain_file(path)
        size_bytes, sha256 = sha256_of_file(path)
    _refuse_other_size(path, size_bytes, expected)
    if sha256 != expected.sha256:
        raise StorageError(f"{path}: was damaged: it does not have the sha256 that the manifest names")


def verify_size(path: Path, expected: ShardFile) -> None:
    """The quick half of verify_shard. Raises StorageError."""
    with storage_errors(path, "can't be read"):
        require_plain_file(path)
        size_bytes = path.stat().st_size
    _refuse_other_size(path, size_bytes, expected)


def read_rows(path: Path, name: str, entry: ArrayEntry, row_count: int, rows: NDArray[np.int64]) -> Array:
    """These rows of an array of `row_count` rows, read as the one slab that spans them; `rows` is not empty.

    Raises StorageError where the array is not the one that the manifest describes.
    """
    first, last = int(rows.min()), int(rows.max())
    try:
        with h5py.File(path, "r") as file:
            data_set = open_contiguous(file, name)
            if data_set.shape != (row_count, *entry.shape) or data_set.dtype != np.dtype(entry.dtype):
                raise StorageError(f"{path}: /{name} is not the array that the manifest describes")
            slab: Array = data_set[first : last + 1]
    except RefusedError as error:
        raise StorageError(f"{path}: {error}") from error
    except UNREADABLE as error:
        raise StorageError(f"{path}: /{name} can't be read: {error}") from error
    return slab[rows - first]


def _refuse_other_size(path: Path, size_bytes: int, expected: ShardFile) -> None:
    if size_bytes != expected.size_bytes:
        raise StorageError(f"{path}: has {size_bytes} bytes, the manifest says {expected.size_bytes}")
