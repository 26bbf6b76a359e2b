"""Saving while training goes on: files are written by a thread of every rank, agreement stays at round boundaries.

    begin        every rank hands over copies of its state, and its thread starts to write
    advance      once no rank writes any more: rank 0 gathers the reports and its thread commits; once that has ended:
                 all ranks learn how

Between the two the ranks train. That no rank writes any more is agreed on with the flags that travel every round
anyway (`unfinished`), so that saving costs no message of its own until there is something to tell. One rank's failure
abandons the attempt on all of them, and the checkpoints that were there stay.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from parse_mpi.errors import EvictedError, StorageError
from parse_mpi.storage.commit import attempt_dir, commit, discard_leftovers, write_part
from parse_mpi.storage.manifest import ShardReport, canonical_json
from parse_mpi.storage.parallel import ParallelWorld, write_single
from parse_mpi.storage.shard import AgentArray, refuse_contradictions


class World(ParallelWorld, Protocol):
    """What saving needs of the MPI world."""

    def gather_json(self, value: Any) -> list[Any] | None:
        """Rank 0 gets the values of all ranks in rank order, the others None."""

    def broadcast_json(self, value: Any) -> Any:
        """All ranks get rank 0's value."""


@dataclass(frozen=True)
class SaveRecord:
    """How a save ended, the same on all ranks.

    checkpoint: whether there was to be one, or metrics alone. metrics_written, committed: what of it there is now.
    reason: what failed, or a remark on a commit. size_bytes: all shards together. seconds: from begin to the end.
    pause_seconds: how long training stood still for it on rank 0. evicted: the run directory belongs to another launch.
    """

    round_index: int
    checkpoint: bool
    metrics_written: bool = False
    committed: bool = False
    reason: str = ""
    size_bytes: int = 0
    seconds: float = 0.0
    pause_seconds: float = 0.0
    evicted: bool = False


@dataclass(frozen=True)
class _Save:
    """What a rank is to write. arrays: None where there is to be no checkpoint. segment: writes the metrics, rank 0."""

    round_index: int
    attempt: Path
    arrays: Sequence[AgentArray] | None
    header: Mapping[str, JsonValue]
    segment: Callable[[], object]
    started: float


class Saver:
    """Writes metrics and checkpoints of a run, one save at a time; every rank has one and calls the same methods."""

    def __init__(
        self,
        world: World,
        run_dir: Path,
        keep: int,
        announce: Callable[[int], object] = lambda round_index: None,
        still_ours: Callable[[], object] = lambda: None,
        single: bool = False,
    ):
        """keep: checkpoints that stay. announce: told on rank 0, in its thread, of every round that is committed.

        still_ours: raises EvictedError where the run directory is another launch's; asked on rank 0 before it writes.
        Both may raise StorageError, which counts as a failure of the save. single: all ranks write one file together
        (parallel.py), and training stands still meanwhile.
        """
        self.world = world
        self.run_dir = run_dir
        self.keep = keep
        self._single = single
        self._announce = announce
        self._still_ours = still_ours
        self._token: str = world.broadcast_json(secrets.token_hex(4))
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._save: _Save | None = None
        self._writing: Future[tuple[ShardReport, bool]] | None = None
        self._ending: Future[SaveRecord] | None = None
        self._pause_s = 0.0

    @property
    def active(self) -> bool:
        """Whether a save has begun and not ended; the same on all ranks."""
        return self._save is not None

    @property
    def unfinished(self) -> bool:
        """Whether this rank's thread is at work."""
        return any(work is not None and not work.done() for work in (self._writing, self._ending))

    def begin(
        self,
        round_index: int,
        state: Callable[[], Sequence[AgentArray]] | None,
        header: Mapping[str, JsonValue],
        segment: Callable[[], object],
    ) -> None:
        """Start to write the metrics and, unless `state` is None, a checkpoint after `round_index`.

        state: the rows that this rank writes, which nobody may change before the save has ended. header: JSON to find
        in the checkpoint again (rank 0's counts). segment: writes the metrics; called on rank 0 only.
        Raises ValueError for arrays or a header that no checkpoint can hold. No other save may be under way.
        """
        if self.active:
            raise RuntimeError("a save is under way")
        with self._pausing():
            canonical_json(header)
            arrays = None if state is None else state()
            refuse_contradictions(arrays or [])
            attempt = attempt_dir(self.run_dir, round_index, self._token)
            self._save = _Save(round_index, attempt, arrays, header, segment, time.perf_counter())
            together = self._single and arrays is not None  # MPI-IO is collective, so that it is no work for a thread
            written = write_single(self.world, attempt, round_index, arrays or []) if together else None
            self._writing = self._threads.submit(self._write, self._save, written)

    def advance(self) -> SaveRecord | None:
        """The next step of the save; its record when it has ended. Waits for what is `unfinished` on any rank."""
        if self._save is None:
            return None
        if self._writing is not None:
            with self._pausing():
                report, metrics_written = self._writing.result()
                reports = self.world.gather_json(report.model_dump(mode="json"))
            self._writing = None
            if self.world.rank == 0:
                parts = [ShardReport.model_validate(own, strict=False) for own in reports or []]
                self._ending = self._threads.submit(self._end, self._save, parts, metrics_written)
            return None
        with self._pausing():
            ended = asdict(self._ending.result()) if self._ending is not None else None
            record = SaveRecord(**self.world.broadcast_json(ended))
        self._ending = self._save = None
        record, self._pause_s = replace(record, pause_seconds=self._pause_s), 0.0
        return record

    def finish(self) -> SaveRecord | None:
        """Wait for the save that is under way, if there is one; its record."""
        record = None
        while self.active:
            record = self.advance()  # which waits for the thread
        return record

    def close(self) -> None:
        """End the thread, once it has written what it is writing."""
        self._threads.shutdown()

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _write(self, save: _Save, written: ShardReport | None) -> tuple[ShardReport, bool]:
        """Rank 0's metrics, then this rank's shard unless it is `written`; the report, and whether metrics exist."""
        if self.world.rank == 0:
            try:
                self._still_ours()
                discard_leftovers(save.attempt)
                save.segment()
            except StorageError as error:
                return ShardReport(failure=f"metrics: {error}"), False
        if written is not None or not save.arrays:
            return written or ShardReport(), True
        return write_part(save.attempt, self.world.rank, save.round_index, save.arrays), True

    def _end(self, save: _Save, reports: Sequence[ShardReport], metrics_written: bool) -> SaveRecord:
        """Rank 0 commits the checkpoint, or takes the attempt back."""
        record = SaveRecord(save.round_index, save.arrays is not None, metrics_written)
        try:
            self._still_ours()
            if save.arrays is not None:
                size_bytes, remark = commit(save.attempt, save.round_index, save.header, reports, self.keep)
                record = replace(record, committed=True, reason=remark, size_bytes=size_bytes)
                self._announce(save.round_index)
            else:
                record = replace(record, reason="; ".join(report.failure for report in reports if report.failure))
        except StorageError as error:
            record = replace(record, reason=str(error), evicted=isinstance(error, EvictedError))
        return replace(record, seconds=time.perf_counter() - save.started)

    @contextmanager
    def _pausing(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._pause_s += time.perf_counter() - start
