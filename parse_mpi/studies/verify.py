"""`parse-mpi verify`: reads all that a run directory holds and compares it with every digest there is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from parse_mpi.errors import ParseMpiError, StorageError, counted
from parse_mpi.run.summary import size_text
from parse_mpi.storage.checkpoint import Checkpoint, checkpoints_dir, open_checkpoint, round_name, rounds_in
from parse_mpi.storage.manifest import MANIFEST_NAME
from parse_mpi.storage.metrics import require_rounds, segments_and_tables, verify_consolidated, verify_file
from parse_mpi.storage.rundir import RunDirectory, RunState
from parse_mpi.storage.shard import verify_shard
from parse_mpi.storage.write import storage_errors
from parse_mpi.studies.recorded import recorded_job


def verify_run(path: Path) -> bool:
    """Print a line for each file of a run, ok or what is wrong with it, and what a restart would begin with.

    Goes on after a fault; returns whether there was none. Raises StorageError where `path` holds no run. Take a run
    that nobody is writing: what is removed or added meanwhile looks like damage.
    """
    run = RunDirectory(path)
    run.require()
    started = time.perf_counter()
    report = _Report(run.path)
    with report.on(run.job_path):
        recorded_job(run)
    state = _verify_state(run, report)
    with storage_errors(run.path, "can't be read"):
        rounds, metrics = rounds_in(checkpoints_dir(run.path)), segments_and_tables(run.path)
    loadable = [done for done in rounds if _verify_checkpoint(run, done, report)]
    _verify_metrics(run, metrics, report)
    for leftover in _leftovers(run):
        print(f"leftover {leftover.relative_to(run.path)}: of a write that did not end, which is no damage")
    unread = [path.name for path in (run.job_path, run.state_path) if path in report.damaged and path.exists()]
    until = f"is refused until {' and '.join(unread)} can be read, and then " if unread else ""
    try:
        print(f"restart: {until}{_restart(run, state, rounds, loadable)}")
    except StorageError as error:
        report.blame(error)
    seconds = time.perf_counter() - started
    verdict = counted(report.faults, "fault") if report.faults else "all sound"
    print(f"{verdict}: {counted(report.files, 'file')}, {size_text(report.size_bytes)} in {seconds:.1f} s")
    return not report.faults


@dataclass
class _Report:
    """What was said so far. faults: lines that tell of damage, damaged: the files that they are about.

    files, size_bytes: of all files, sound or not.
    """

    run_dir: Path
    faults: int = 0
    damaged: set[Path] = field(default_factory=set)
    files: int = 0
    size_bytes: int = 0

    @contextmanager
    def on(self, path: Path) -> Iterator[None]:
        """Print the line of a file, whatever the check inside comes to."""
        self.files += 1
        size_bytes = 0
        with suppress(OSError):  # the check will say it
            size_bytes = path.stat().st_size
        self.size_bytes += size_bytes
        try:
            yield
        except ParseMpiError as error:
            self.damaged.add(path)
            self.blame(error, path)
        else:
            print(f"ok       {path.relative_to(self.run_dir)} ({size_text(size_bytes)})")

    def blame(self, error: ParseMpiError, path: Path | None = None) -> None:
        """Print what is wrong, with paths as they are in the run directory."""
        self.faults += 1
        text = str(error) if path is None or str(path) in str(error) else f"{path}: {error}"
        print("DAMAGED  " + text.replace(f"{self.run_dir}/", "").replace("\n", "\n         "))


def _verify_state(run: RunDirectory, report: _Report) -> RunState | None:
    state = None
    with report.on(run.state_path):
        state = run.read_state()
        if state is None:
            raise StorageError(f"{run.state_path}: missing; the next launch writes it anew")
    return state


def _verify_checkpoint(run: RunDirectory, round_index: int, report: _Report) -> bool:
    """Whether the checkpoint could be loaded: its view may be damaged all the same."""
    path = checkpoints_dir(run.path) / round_name(round_index)
    checkpoint: Checkpoint | None = None
    with report.on(path / MANIFEST_NAME):
        checkpoint = open_checkpoint(run.path, round_index)
    if checkpoint is None:
        return False
    faults_before = report.faults
    for index, shard in enumerate(checkpoint.manifest.shards):
        with report.on(path / shard.file):
            checkpoint.verify_rows(index)
    is_loadable = report.faults == faults_before
    if (view := checkpoint.manifest.view) is not None:
        with report.on(path / view.file):
            verify_shard(path / view.file, view)
    return is_loadable


def _verify_metrics(run: RunDirectory, sources: Sequence[Path], report: _Report) -> None:
    faults_before = report.faults
    for path in sources:
        with report.on(path):
            verify_file(path)
    if run.metrics_path.exists():
        with report.on(run.metrics_path):
            verify_file(run.metrics_path)
            if report.faults == faults_before:
                verify_consolidated(run.path)


def _leftovers(run: RunDirectory) -> list[Path]:
    """Temporary files and directories of writes that were killed, or go on right now."""
    folders = (run.path, checkpoints_dir(run.path), run.path / "metrics")
    return sorted(path for folder in folders for path in folder.glob(".*.tmp"))


def _restart(run: RunDirectory, state: RunState | None, rounds: list[int], loadable: list[int]) -> str:
    """What the next launch of the run would begin with. Raises StorageError where it would refuse, or lose rounds."""
    named = state.round if state is not None else 0
    if named > max(rounds, default=0):
        raise StorageError(f"restart: the checkpoint of round {named}, which state.json names, is not there")
    if not rounds:
        return "begins at round 0; there is no checkpoint yet"
    if not loadable:
        raise StorageError("restart: none of the checkpoints can be trusted; it would be refused")
    of_all = f" of {state.rounds}" if state is not None else ""
    for round_index in reversed(loadable):
        with suppress(StorageError):
            require_rounds(run.path, round_index)
            return f"goes on after round {round_index}{of_all}, from checkpoints/{round_name(round_index)}"
    raise StorageError("restart: it would be refused, because the metrics up to no checkpoint are complete")
