"""The file steps of saving a checkpoint: a shard per writer in a hidden directory, a manifest, one rename.

    RUN/checkpoints/.round-000050.1f2e3d4c.tmp/  ->  RUN/checkpoints/round-000050/

Nothing here talks to other ranks: saver.py walks all of them through these steps together. A kill at any point leaves
a hidden directory that the next save removes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import Checkpoint, checkpoints_dir, round_name, rounds_in
from parse_mpi.storage.manifest import ShardReport, merge, write_manifest
from parse_mpi.storage.shard import AgentArray, write_shard
from parse_mpi.storage.view import write_view
from parse_mpi.storage.write import storage_errors, sync_directory


def attempt_dir(run_dir: Path, round_index: int, token: str) -> Path:
    """Where an attempt collects its files. token: of one launch, so that no two launches share a directory."""
    return checkpoints_dir(run_dir) / f".{round_name(round_index)}.{token}.tmp"


def make_attempt(attempt: Path) -> None:
    """Make the directory of an attempt, unless it is there. Raises StorageError.

    A run directory that has vanished is not made again: what would be written there is no run.
    """
    with storage_errors(attempt, "can't be made"):
        for directory in (attempt.parent, attempt):
            directory.mkdir(exist_ok=True)


def discard_leftovers(attempt: Path) -> None:
    """Remove what killed attempts left beside this one, as far as that can be done: it may be what fills the disk."""
    with suppress(OSError):
        for leftover in attempt.parent.glob(".round-*.tmp"):
            if leftover != attempt:
                shutil.rmtree(leftover, ignore_errors=True)


def write_part(attempt: Path, writer: int, round_index: int, arrays: Sequence[AgentArray]) -> ShardReport:
    """Write one shard of an attempt, whose directory the first writer makes. A failure is part of the report."""
    try:
        make_attempt(attempt)
    except StorageError as error:
        return ShardReport(failure=f"rank {writer}: {error}")
    return write_shard(attempt, writer, round_index, arrays)


def commit(
    attempt: Path, round_index: int, header: Mapping[str, JsonValue], reports: Sequence[ShardReport], keep: int
) -> tuple[int, str]:
    """Turn the attempt's directory into the checkpoint of the round and remove all but the newest `keep`.

    Returns the bytes of all shards, and a remark where an old checkpoint could not be removed. Raises StorageError,
    the attempt then being removed and the checkpoints there as they were, when a shard or a later step failed.
    """
    directory, target = attempt.parent, attempt.parent / round_name(round_index)
    try:
        if failures := [report.failure for report in reports if report.failure]:
            raise StorageError("; ".join(failures))
        manifest = merge(round_index, header, reports)
        manifest = manifest.model_copy(update={"view": write_view(attempt, manifest)})
        write_manifest(attempt, manifest)
        with storage_errors(target):
            if target.exists():  # a damaged one: those that hold are where a launch begins
                _remove(target)
            os.rename(attempt, target)
            sync_directory(directory)
    except StorageError:
        shutil.rmtree(attempt, ignore_errors=True)
        raise
    return manifest.size_bytes, _retain(directory, round_index, keep)


def _retain(directory: Path, newest: int, keep: int) -> str:
    """Remove what is older than the newest `keep` valid checkpoints up to round `newest`; a remark where that failed.

    Valid here means a sound manifest and shards of the right size: hashing the old shards at every save would double
    the reading. What is not valid is no reason to remove it yet: a disk that can't be read for a moment must not cost a
    checkpoint. Later rounds, which a resumed run found damaged, are neither counted nor touched.
    """
    kept = 0
    try:
        for round_index in reversed(rounds_in(directory)):
            path = directory / round_name(round_index)
            if round_index > newest:
                continue
            if kept >= keep:
                _remove(path)
            elif _is_whole(path):
                kept += 1
    except OSError as error:
        return f"{directory}: an old checkpoint could not be removed: {error}"
    return ""


def _remove(path: Path) -> None:
    """Remove a checkpoint: hidden first, so that no half of it is ever mistaken for one."""
    hidden = path.with_name(f".{path.name}.old.tmp")
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _is_whole(path: Path) -> bool:
    try:
        Checkpoint(path).check_sizes()
    except StorageError:
        return False
    return True
