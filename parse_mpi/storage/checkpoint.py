"""Checkpoints: one shard per rank and a manifest, committed by a rename, read back by agent id on any number of ranks.

    RUN/checkpoints/round-000050/manifest.json  shard-0000.h5  shard-0001.h5  ...

Saving is a protocol that all ranks walk through together (save_checkpoint). One rank's failure abandons the attempt on
all of them, says why, and leaves the checkpoints that were there. A kill at any point leaves a hidden directory that
the next attempt removes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array
from parse_mpi.storage.manifest import (
    ArrayEntry,
    Manifest,
    ShardReport,
    canonical_json,
    from_ranges,
    merge,
    read_manifest,
    write_manifest,
)
from parse_mpi.storage.shard import AgentArray, read_rows, refuse_contradictions, verify_shard, verify_size, write_shard
from parse_mpi.storage.write import storage_errors, sync_directory

_ROUND_NAME = re.compile(r"round-([0-9]{6,})")


class World(Protocol):
    """What saving needs of the MPI world."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def gather_json(self, value: Any) -> list[Any] | None:
        """Rank 0 gets the values of all ranks in rank order, the others None."""

    def broadcast_json(self, value: Any) -> Any:
        """All ranks get rank 0's value."""


@dataclass(frozen=True)
class CommitRecord:
    """How an attempt to save ended, the same on all ranks.

    reason: why it was not committed, or a remark on a commit. size_bytes: all shards together. seconds: wall time.
    """

    committed: bool
    reason: str = ""
    size_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Rejection:
    """A checkpoint that can't be trusted, and why."""

    path: Path
    reason: str


# -- saving ----------------------------------------------------------------------------------------------------------


def save_checkpoint(
    world: World,
    run_dir: Path,
    round_index: int,
    arrays: Sequence[AgentArray],
    header: Mapping[str, JsonValue],
    keep: int,
) -> CommitRecord:
    """Save the state after `round_index`; every rank calls it, each with the rows of its own agents.

    1. rank 0 makes checkpoints/.round-N.tmp and tells all; 2. each rank writes, flushes and reads back its shard there;
    3. rank 0 gathers the reports and, if all are good, writes the manifest, renames the directory to round-N, flushes
    the names, and removes all but the newest `keep` checkpoints up to round N; 4. it tells all how it ended.
    A valid checkpoint of this round stays as it is. `header`: JSON to find in the checkpoint again (rank 0's counts).

    A full disk or the like is no exception but a CommitRecord with committed=False: training goes on from memory.
    Raises ValueError for arrays or a header that no checkpoint can hold.
    """
    started = time.perf_counter()
    canonical_json(header)
    refuse_contradictions(arrays)
    directory = _checkpoints(run_dir)
    outcome = _decide(world, lambda: _prepare(directory, round_index))
    if outcome is None:
        report = write_shard(_temporary(directory, round_index), world.rank, round_index, arrays)
        reports = world.gather_json(report.model_dump(mode="json"))
        outcome = _decide(world, lambda: _commit(directory, round_index, header, reports or [], keep))
    assert outcome is not None
    return replace(outcome, seconds=time.perf_counter() - started)


def _decide(world: World, decision: Callable[[], CommitRecord | None]) -> CommitRecord | None:
    """Rank 0 decides, all ranks learn; a StorageError of the decision is a failed attempt."""
    outcome: CommitRecord | None = None
    if world.rank == 0:
        try:
            outcome = decision()
        except StorageError as error:
            outcome = CommitRecord(False, str(error))
    told = world.broadcast_json(asdict(outcome) if outcome is not None else None)
    return CommitRecord(**told) if told is not None else None


def _prepare(directory: Path, round_index: int) -> CommitRecord | None:
    """Make an empty temporary directory. A record instead of None: the round is saved already."""
    if _is_valid(directory / _round_name(round_index), Checkpoint.verify):
        return CommitRecord(True, "was saved before", read_manifest(directory / _round_name(round_index)).size_bytes)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)
        for leftover in directory.glob(".round-*.tmp"):
            shutil.rmtree(leftover)
        _temporary(directory, round_index).mkdir()
    return None


def _commit(
    directory: Path, round_index: int, header: Mapping[str, JsonValue], reports: Sequence[Any], keep: int
) -> CommitRecord:
    """Turn the temporary directory into the checkpoint, or remove it and say why."""
    temporary, target = _temporary(directory, round_index), directory / _round_name(round_index)
    try:
        shard_reports = [ShardReport.model_validate(report, strict=False) for report in reports]
        failures = [report.failure for report in shard_reports if report.failure]
        if failures:
            raise StorageError("; ".join(failures))
        manifest = merge(round_index, header, shard_reports)
        write_manifest(temporary, manifest)
        with storage_errors(target):
            if target.exists():
                _remove(target)
            os.rename(temporary, target)
            sync_directory(directory)
    except StorageError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return CommitRecord(True, _retain(directory, round_index, keep), manifest.size_bytes)


def _retain(directory: Path, newest: int, keep: int) -> str:
    """Remove all but the newest `keep` checkpoints up to round `newest`; returns a remark where that failed.

    Valid here means a sound manifest and shards of the right size: hashing the old shards at every save would double
    the reading. Later rounds, which a resumed run found damaged, are neither counted nor touched.
    """
    kept = 0
    try:
        for round_index in reversed(_rounds(directory)):
            path = directory / _round_name(round_index)
            if round_index > newest:
                continue
            if kept < keep and _is_valid(path, Checkpoint.check_sizes):
                kept += 1
            else:
                _remove(path)
    except OSError as error:
        return f"{directory}: an old checkpoint could not be removed: {error}"
    return ""


def _remove(path: Path) -> None:
    """Remove a checkpoint: hidden first, so that no half of it is ever mistaken for one."""
    hidden = path.with_name(f".{path.name}.old.tmp")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


# -- loading ---------------------------------------------------------------------------------------------------------


class Checkpoint:
    """One committed checkpoint, for any number of readers.

    A shard is hashed before libhdf5 opens it for the first time; a reader hashes only the shards that it needs.
    """

    def __init__(self, path: Path):
        """Raises StorageError where the manifest can't be trusted."""
        self.path = path
        self._manifest: Manifest = read_manifest(path)
        self._verified: set[int] = set()

    @property
    def round_index(self) -> int:
        return self._manifest.round

    @property
    def header(self) -> dict[str, JsonValue]:
        return self._manifest.header

    def names(self) -> list[str]:
        """The arrays that the checkpoint holds, in alphabetical order."""
        return sorted(self._manifest.arrays)

    def agents_of(self, name: str) -> NDArray[np.int64]:
        """The ids that have a row of this array, ascending int64[k]. Raises StorageError for an unknown name."""
        return np.sort(
            np.concatenate([np.empty(0, np.int64), *(from_ranges(p.agents) for p in self._entry(name).parts)])
        )

    def read(self, name: str, agents: NDArray[np.int64]) -> Array:
        """Rows [k, ...] of these agents, in their order, whichever shards they lie in.

        Raises StorageError naming an agent without a row, or a shard that was damaged.
        """
        entry = self._entry(name)
        agents = np.asarray(agents, dtype=np.int64)
        values = np.empty((len(agents), *entry.shape), dtype=entry.dtype)
        missing = np.ones(len(agents), dtype=bool)
        for part in entry.parts:
            held = from_ranges(part.agents)
            here = np.isin(agents, held)
            if here.any():
                path = self._sound_shard(part.shard)
                values[here] = read_rows(path, name, entry, len(held), np.searchsorted(held, agents[here]))
                missing &= ~here
        if missing.any():
            raise StorageError(f"{self.path}: no {name} of agent {agents[missing][0]}")
        return values

    def verify(self) -> None:
        """Hash every shard. Raises StorageError naming the first that is not the one that was written."""
        for shard in range(len(self._manifest.shards)):
            self._sound_shard(shard)

    def check_sizes(self) -> None:
        """The quick half of verify: every shard is there with the right size. Raises StorageError."""
        for shard in self._manifest.shards:
            verify_size(self.path / shard.file, shard)

    def _entry(self, name: str) -> ArrayEntry:
        if name not in self._manifest.arrays:
            raise StorageError(f"{self.path}: no array {name}; there are {', '.join(self.names())}")
        return self._manifest.arrays[name]

    def _sound_shard(self, index: int) -> Path:
        """The file of a shard, hashed at the first call. Raises StorageError where it is damaged."""
        if index >= len(self._manifest.shards):
            raise StorageError(f"{self.path}: the manifest names shard {index}, which it does not list")
        shard = self._manifest.shards[index]
        if index not in self._verified:
            verify_shard(self.path / shard.file, shard)
            self._verified.add(index)
        return self.path / shard.file


def load_newest(run_dir: Path) -> tuple[Checkpoint | None, list[Rejection]]:
    """The newest checkpoint whose manifest and shards all hold, and the newer ones that were rejected.

    (None, []) means that there is none; (None, rejections) that there are some and none can be trusted, which a caller
    must not take for a fresh start. Hashes every shard: on many ranks, call it on rank 0 and open_checkpoint elsewhere.
    """
    directory = _checkpoints(run_dir)
    rejections: list[Rejection] = []
    with storage_errors(directory, "can't be read"):
        rounds = _rounds(directory)
    for round_index in reversed(rounds):
        path = directory / _round_name(round_index)
        try:
            checkpoint = open_checkpoint(run_dir, round_index)
            checkpoint.verify()
            return checkpoint, rejections
        except StorageError as error:
            rejections.append(Rejection(path, str(error)))
    return None, rejections


def open_checkpoint(run_dir: Path, round_index: int) -> Checkpoint:
    """The checkpoint of one round, its manifest checked. Raises StorageError."""
    checkpoint = Checkpoint(_checkpoints(run_dir) / _round_name(round_index))
    if checkpoint.round_index != round_index:
        raise StorageError(f"{checkpoint.path}: its manifest is of round {checkpoint.round_index}")
    return checkpoint


# -- names -----------------------------------------------------------------------------------------------------------


def _checkpoints(run_dir: Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _round_name(round_index: int) -> str:
    return f"round-{round_index:06d}"


def _temporary(directory: Path, round_index: int) -> Path:
    return directory / f".{_round_name(round_index)}.tmp"


def _rounds(directory: Path) -> list[int]:
    """Rounds that have a directory, good or bad, ascending."""
    if not directory.is_dir():
        return []
    matches = (_ROUND_NAME.fullmatch(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def _is_valid(path: Path, check: Callable[[Checkpoint], None]) -> bool:
    try:
        check(Checkpoint(path))
    except StorageError:
        return False
    return True
