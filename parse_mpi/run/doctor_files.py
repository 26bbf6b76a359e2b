"""What `parse-mpi doctor --out DIR` finds out about a directory: would a run's files be safe there?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from parse_mpi.run.findings import Finding

ANOTHER = "choose another directory for --out: a run rests on this"
SLOW_FLUSH_S = 1.0
CLAIMS = 20


class Ranks(Protocol):
    """Those that try the directory together: a World, or a process Alone."""

    rank: int
    size: int

    def barrier(self) -> None: ...

    def all_json(self, value: Any) -> list[Any]: ...

    def broadcast_json(self, value: Any) -> Any: ...


class Alone:
    """One process, without MPI."""

    rank = 0
    size = 1

    def barrier(self) -> None: ...

    def all_json(self, value: Any) -> list[Any]:
        return [value]

    def broadcast_json(self, value: Any) -> Any:
        return value


def check_directory(ranks: Ranks, out: Path) -> Iterator[Finding]:
    """All ranks call it together. Nothing is left in the directory, which need not be there yet."""
    from parse_mpi.storage.probe import file_system, nearest_directory

    folder = nearest_directory(out)
    made, failure = ranks.broadcast_json(_make_scratch(folder) if ranks.rank == 0 else None)
    if failure:
        yield Finding("FAIL", "directory", f"{folder}: {failure}", ANOTHER)
        return
    scratch = Path(made)
    try:
        problem, flush_s = _try_out(ranks, scratch)  # when it returns, all ranks are done
    finally:
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
    free_gb = shutil.disk_usage(folder).free / 1e9
    name = f"{folder} ({file_system(folder) or 'unknown file system'}, {free_gb:.0f} GB free)"
    if problem:
        yield Finding("FAIL", "directory", f"{name}: {problem}", ANOTHER)
        return
    seen = f", {ranks.size} ranks see the same" if ranks.size > 1 else ""
    text = f"{name}: fsync of 1 MB takes {1e3 * flush_s:.1f} ms, renames are atomic, O_EXCL holds{seen}"
    if flush_s > SLOW_FLUSH_S:
        yield Finding("note", "directory", text, "choose a faster file system, or save fewer checkpoints")
    else:
        yield Finding("ok", "directory", text)


def _make_scratch(folder: Path) -> tuple[str, str]:
    """A hidden directory for trials, or why there is none."""
    try:
        return tempfile.mkdtemp(prefix=".parse-mpi-doctor-", dir=folder), ""
    except OSError as error:
        return "", str(error.strerror)


def _try_out(ranks: Ranks, scratch: Path) -> tuple[str, float]:
    """What is wrong with the file system, "" if nothing is, and how long the slowest rank took to flush a file."""
    blind = [rank for rank, sees in enumerate(ranks.all_json(scratch.is_dir())) if not sees]
    if blind:
        return f"ranks {blind} do not see what rank 0 has made there; hosts must share it", 0.0
    failures, flushes, torn, created = zip(*ranks.all_json(_trials(ranks, scratch)), strict=True)
    for rank, failure in enumerate(failures):
        if failure:
            return f"rank {rank}: {failure}", 0.0
    if any(torn):
        return f"renames are not atomic: readers saw {sum(torn)} files that were not whole", 0.0
    times = [sum(by_rank) for by_rank in zip(*created, strict=True)]
    if any(count != 1 for count in times):
        return f"O_EXCL does not hold: one file was created up to {max(times)} times", 0.0
    return "", max(flushes)


def _trials(ranks: Ranks, scratch: Path) -> tuple[str, float, int, list[int]]:
    """This rank's part: what failed, seconds of a flush, files seen that were not whole, and how often this rank
    created each of some files that all ranks try to create at once."""
    from parse_mpi.storage.probe import create_alone, flush_seconds, torn_renames

    failure, flush_s, torn, created = "", 0.0, 0, []
    for k in range(CLAIMS):
        ranks.barrier()
        try:
            created.append(sum(create_alone(scratch / f"claim-{k}") for _ in range(2)))
        except OSError as error:
            failure = f"creating a file: {error.strerror}"
    try:
        flush_s = flush_seconds(scratch, f"flushed-{ranks.rank}")
        torn = torn_renames(scratch, f"renamed-{ranks.rank}")
    except OSError as error:
        failure = f"flushing and renaming a file: {error.strerror}"
    return failure, flush_s, torn, created
