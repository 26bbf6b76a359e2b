"""Checkpoints put together by hand, so that tests of what reads them can also make some that no run would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.manifest import (
    ArrayEntry,
    ArrayPart,
    Manifest,
    ShardFile,
    ShardReport,
    merge,
    to_ranges,
    write_manifest,
)
from parse_mpi.storage.shard import AgentArray, agents_name
from parse_mpi.storage.view import write_view
from parse_mpi.storage.write import write_hdf5


def write_checkpoint(
    directory: Path, round_index: int, shards: Sequence[Sequence[AgentArray]], header: Mapping[str, Any] = {}
) -> Manifest:
    """Write shards, view and manifest into `directory`, whatever the values are."""
    directory.mkdir(parents=True)
    reports = [_write_shard(directory, number, arrays) for number, arrays in enumerate(shards)]
    manifest = merge(round_index, header, reports)
    manifest = manifest.model_copy(update={"view": write_view(directory, manifest)})
    write_manifest(directory, manifest)
    return manifest


def copy_dealt(source: Checkpoint, directory: Path, owner: NDArray[np.int64], count: int) -> Manifest:
    """Write what a checkpoint holds as `count` shards; `owner` [agents] says in which an agent's rows go."""
    shards = []
    for number in range(count):
        arrays = []
        for name in source.names():
            agents = source.agents_of(name)
            held = agents[owner[agents] == number]
            arrays.append(AgentArray(name, held, source.read(name, held)))
        shards.append(arrays)
    return write_checkpoint(directory, source.round_index, shards, source.header)


def _write_shard(directory: Path, number: int, arrays: Sequence[AgentArray]) -> ShardReport:
    content = {agents_name(array.name): array.agents for array in arrays}
    content |= {array.name: array.values for array in arrays}
    record = write_hdf5(directory / f"shard-{number:04d}.h5", content, {})
    entries = {
        array.name: ArrayEntry(
            shape=array.values.shape[1:],
            dtype=array.values.dtype.str,
            parts=(ArrayPart(shard=0, agents=to_ranges(array.agents), sha256=record.arrays[array.name]),),
        )
        for array in arrays
    }
    file = ShardFile(file=f"shard-{number:04d}.h5", size_bytes=record.size_bytes, sha256=record.sha256)
    return ShardReport(shard=file, arrays=entries)
