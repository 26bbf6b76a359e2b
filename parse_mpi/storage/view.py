"""The view of a checkpoint: all shards as one file, in which h5py and HDFView see an [agents, ...] array of everything.

    view.h5: /slices/<name>/agents int64[A]  /slices/<name>/parameters [A, P]  /slices/<name>/momentum [A, P]  ...

Agents stand in ascending id, however many shards their rows lie in. The arrays are HDF5 virtual data sets, so that the
view is small; it finds the shards beside itself, wherever the directory is copied. For other programs: nothing here
is ever loaded from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parse_mpi.storage.layout import Attributes, VirtualArray
from parse_mpi.storage.manifest import ArrayEntry, Manifest, ViewFile, from_ranges, to_ranges
from parse_mpi.storage.shard import agents_name
from parse_mpi.storage.write import write_hdf5

VIEW_NAME = "view.h5"


def write_view(directory: Path, manifest: Manifest) -> ViewFile:
    """Write the view of the shards that `manifest` lists, which lie in `directory`. Raises StorageError."""
    agents = {agents_name(name): entry.agents for name, entry in manifest.arrays.items()}
    files = [shard.file for shard in manifest.shards]
    arrays = {name: _over_shards(entry, agents[agents_name(name)], files) for name, entry in manifest.arrays.items()}
    root: Attributes = {
        "": {"format": "parse-mpi view", "format_version": manifest.format_version, "round": manifest.round}
    }
    record = write_hdf5(directory / VIEW_NAME, agents, root, arrays)
    return ViewFile(file=VIEW_NAME, size_bytes=record.size_bytes, sha256=record.sha256)


def _over_shards(entry: ArrayEntry, agents: NDArray[np.int64], files: list[str]) -> VirtualArray:
    """An array as the rows of `agents`, in this order; files: the shards."""
    parts = {files[part.shard]: to_ranges(np.searchsorted(agents, from_ranges(part.agents))) for part in entry.parts}
    return VirtualArray((len(agents), *entry.shape), entry.dtype, parts)
