"""Checkpoints: shards and a manifest, read back by agent id on any number of ranks.

    RUN/checkpoints/round-000050/manifest.json  view.h5  shard-0000.h5  shard-0001.h5  ...

saver.py and commit.py write them. What is loaded is the newest one whose every digest holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array, bytes_of
from parse_mpi.storage.manifest import ArrayEntry, from_ranges, read_manifest
from parse_mpi.storage.shard import agents_name, read_rows, verify_shard, verify_size
from parse_mpi.storage.write import storage_errors

_ROUND_NAME = re.compile(r"round-([0-9]{6,})")
_IDS = ArrayEntry(shape=(), dtype="<i8", parts=())


@dataclass(frozen=True)
class Rejection:
    """A checkpoint that can't be trusted, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name} is not used: {self.reason}"


class Checkpoint:
    """One committed checkpoint, for any number of readers.

    A shard is hashed before libhdf5 opens it for the first time; a reader hashes only the shards that it needs.
    """

    def __init__(self, path: Path):
        """Raises StorageError where the manifest can't be trusted."""
        self.path = path
        self.manifest = read_manifest(path)
        self._verified: set[int] = set()

    @property
    def round_index(self) -> int:
        return self.manifest.round

    @property
    def header(self) -> dict[str, JsonValue]:
        return self.manifest.header

    def names(self) -> list[str]:
        """The arrays that the checkpoint holds, in alphabetical order."""
        return sorted(self.manifest.arrays)

    def agents_of(self, name: str) -> NDArray[np.int64]:
        """The ids that have a row of this array, ascending int64[k]. Raises StorageError for an unknown name."""
        return self._entry(name).agents

    def read(self, name: str, agents: NDArray[np.int64]) -> Array:
        """Rows [k, ...] of these agents, in their order, whichever shards they lie in.

        Raises StorageError naming an agent without a row, or a shard that was damaged.
        """
        entry = self._entry(name)
        agents = np.asarray(agents, dtype=np.int64)
        missing = np.ones(len(agents), dtype=bool)
        found = []
        for part in entry.parts:
            held = from_ranges(part.agents)
            here = np.isin(agents, held)
            if here.any():
                found.append((self._sound_shard(part.shard), held, here))
                missing &= ~here
        if missing.any():
            raise StorageError(f"{self.path}: no {name} of agent {agents[missing][0]}")
        values = np.empty((len(agents), *entry.shape), dtype=entry.dtype)  # which sound shards have room for
        for path, held, here in found:
            values[here] = read_rows(path, name, entry, len(held), np.searchsorted(held, agents[here]))
        return values

    def verify(self) -> None:
        """Hash every shard. Raises StorageError naming the first that is not the one that was written."""
        for shard in range(len(self.manifest.shards)):
            self._sound_shard(shard)

    def verify_rows(self, shard: int) -> None:
        """Hash one shard, then every array in it, and compare its ids, with what the manifest says of each.

        Raises StorageError naming the first that differs.
        """
        path = self._sound_shard(shard)
        for name, entry in self.manifest.arrays.items():
            for part in entry.parts:
                if part.shard != shard or not part.agents:
                    continue
                held = from_ranges(part.agents)
                ids = read_rows(path, agents_name(name), _IDS, len(held), np.arange(len(held)))
                if not np.array_equal(ids, held):
                    raise StorageError(f"{path}: /{agents_name(name)} holds other ids than the manifest says")
                if hashlib.sha256(bytes_of(self.read(name, held))).hexdigest() != part.sha256:
                    raise StorageError(f"{path}: /{name} does not have the sha256 that the manifest names")

    def check_sizes(self) -> None:
        """The quick half of verify: every shard is there with the right size. Raises StorageError."""
        for shard in self.manifest.shards:
            verify_size(self.path / shard.file, shard)

    def _entry(self, name: str) -> ArrayEntry:
        if name not in self.manifest.arrays:
            raise StorageError(f"{self.path}: no array {name}; there are {', '.join(self.names())}")
        return self.manifest.arrays[name]

    def _sound_shard(self, index: int) -> Path:
        """The file of a shard, hashed at the first call. Raises StorageError where it is damaged."""
        shard = self.manifest.shards[index]
        if index not in self._verified:
            verify_shard(self.path / shard.file, shard)
            self._verified.add(index)
        return self.path / shard.file


def load_newest(
    run_dir: Path, require: Callable[[int], object] = lambda round_index: None
) -> tuple[Checkpoint | None, list[Rejection]]:
    """The newest checkpoint whose manifest and shards all hold, and the newer ones that were rejected.

    require: raises StorageError where something else that belongs to this round is not there.
    (None, []) means that there is none; (None, rejections) that there are some and none can be trusted, which a caller
    must not take for a fresh start. Hashes every shard: on many ranks, call it on rank 0 and open_checkpoint elsewhere.
    """
    directory = checkpoints_dir(run_dir)
    rejections: list[Rejection] = []
    with storage_errors(directory, "can't be read"):
        rounds = rounds_in(directory)
    for round_index in reversed(rounds):
        path = directory / round_name(round_index)
        try:
            checkpoint = open_checkpoint(run_dir, round_index)
            checkpoint.verify()
            require(round_index)
            return checkpoint, rejections
        except StorageError as error:
            rejections.append(Rejection(path, str(error)))
    return None, rejections


def require_newest(run_dir: Path) -> tuple[Checkpoint, list[Rejection]]:
    """load_newest for who can't do without one. Raises StorageError where there is none, with all rejections."""
    checkpoint, rejections = load_newest(run_dir)
    if checkpoint is None:
        reasons = "".join(f"\n  {rejection}" for rejection in rejections)
        what = f"none of its checkpoints can be trusted:{reasons}" if reasons else "no checkpoint has been written yet"
        raise StorageError(f"{run_dir}: {what}")
    return checkpoint, rejections


def open_checkpoint(run_dir: Path, round_index: int) -> Checkpoint:
    """The checkpoint of one round, its manifest checked. Raises StorageError."""
    checkpoint = Checkpoint(checkpoints_dir(run_dir) / round_name(round_index))
    if checkpoint.round_index != round_index:
        raise StorageError(f"{checkpoint.path}: its manifest is of round {checkpoint.round_index}")
    return checkpoint


# -- names -----------------------------------------------------------------------------------------------------------


def checkpoints_dir(run_dir: Path) -> Path:
    """Where the checkpoints of a run lie."""
    return Path(run_dir) / "checkpoints"


def round_name(round_index: int) -> str:
    """The directory of the checkpoint after so many rounds."""
    return f"round-{round_index:06d}"


def rounds_in(directory: Path) -> list[int]:
    """Rounds that have a directory, good or bad, ascending."""
    if not directory.is_dir():
        return []
    matches = (_ROUND_NAME.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)
