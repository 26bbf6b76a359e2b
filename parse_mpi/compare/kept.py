"""What an earlier study.h5 holds: it serves where run directories were removed to free a disk, or never came along."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from parse_mpi.compare.directory import RESULT
from parse_mpi.compare.studyfile import Cell, Study, load_study
from parse_mpi.compare.trials import Trial
from parse_mpi.storage.write import storage_errors


def kept_study(out: Path) -> Study | None:
    """The study.h5 of a study directory; None where there is none. Raises StorageError where it can't be read."""
    return load_study(out / RESULT) if (out / RESULT).exists() else None


def kept_cells(earlier: Study | None, trials: Sequence[Trial]) -> dict[str, Cell]:
    """What an earlier study.h5 says of trials whose job is still the same: cells that finished or failed, by name."""
    cells = {cell.name: cell for cell in earlier.cells if cell.status != "missing"} if earlier else {}
    same = {trial.name: trial for trial in trials if _is_of(cells.get(trial.name), trial)}
    # Its levels are those of now: an axis may have another name by now.
    return {name: replace(cells[name], levels=dict(trial.levels)) for name, trial in same.items()}


def kept_results(earlier: Study | None, trials: Sequence[Trial]) -> dict[str, Cell]:
    """Those of them that finished."""
    return {name: cell for name, cell in kept_cells(earlier, trials).items() if cell.result is not None}


def put_aside(out: Path, earlier: Study | None, now: Study) -> Path | None:
    """Give study.h5 a second name where it holds results that the new one lacks, which is to replace it.

    The second name; None where nothing would be lost. Raises StorageError.
    """
    if earlier is None or _held(earlier) <= _held(now):
        return None
    number = 1
    while (aside := out / f"study.previous-{number}.h5").exists():
        number += 1
    with storage_errors(aside):
        os.link(out / RESULT, aside)  # not renamed: at no moment is there no study.h5
    return aside


def _held(study: Study) -> set[tuple[str, str, int]]:
    """Whose results a study holds, and how long each job was, which its digest leaves out."""
    return {(cell.name, cell.job_digest, cell.rounds) for cell in study.cells if cell.result is not None}


def _is_of(cell: Cell | None, trial: Trial) -> bool:
    """The job's digest leaves out how long it is and how often it is evaluated."""
    if cell is None or cell.job_digest != trial.digest or cell.rounds != trial.job.train.rounds:
        return False
    first = min(trial.job.evaluate.every, trial.job.train.rounds)
    return cell.result is None or int(cell.result.curve.round[0]) == first
