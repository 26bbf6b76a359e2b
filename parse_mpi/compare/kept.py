"""What an earlier study.h5 holds: it serves where run directories were removed to free a disk, or never came along."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from parse_mpi.compare.directory import RESULT
from parse_mpi.compare.studyfile import Cell, Study, load_study
from parse_mpi.compare.trials import Trial
from parse_mpi.errors import StorageError


def kept_study(out: Path) -> Study | None:
    """The study.h5 of a study directory; None where there is none that can be read, and cells run anew."""
    with suppress(StorageError):
        return load_study(out / RESULT)
    return None


def kept_cells(earlier: Study | None, trials: Sequence[Trial]) -> dict[str, Cell]:
    """Finished cells of an earlier study.h5 by name, of those trials whose job is still what it was."""
    cells = {cell.name: cell for cell in earlier.cells if cell.result is not None} if earlier else {}
    return {trial.name: cells[trial.name] for trial in trials if _is_of(cells.get(trial.name), trial)}


def _is_of(cell: Cell | None, trial: Trial) -> bool:
    """The job's digest leaves out how long it is and how often it is evaluated."""
    if cell is None or cell.result is None:
        return False
    first = min(trial.job.evaluate.every, trial.job.train.rounds)
    same_length = cell.rounds == trial.job.train.rounds and int(cell.result.curve.round[0]) == first
    return cell.job_digest == trial.digest and same_length
