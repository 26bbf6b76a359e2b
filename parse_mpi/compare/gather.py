"""From the run directories of a study to what study.h5 holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parse_mpi.compare.choices import Choice, Pair
from parse_mpi.compare.collect import read_result
from parse_mpi.compare.kept import kept_cells
from parse_mpi.compare.reading import StudyFile
from parse_mpi.compare.standing import is_finished, run_of, standing
from parse_mpi.compare.studyfile import Cell, Status, Study
from parse_mpi.compare.trials import Trial
from parse_mpi.errors import JobError, StorageError
from parse_mpi.storage.rundir import utc_now
from parse_mpi.yamlfile import read_yaml

OF_LAUNCHES = ("commit", "machine", "versions")  # what provenance.yaml of a run tells of its launches


class NoResult(NamedTuple):
    """Why a cell has none."""

    status: Status
    reason: str = ""


def gather(
    study: StudyFile,
    out: Path,
    cells: Sequence[Trial],
    choices: Mapping[Pair, Choice],
    known: Mapping[str, NoResult],
    earlier: Study | None,
) -> Study:
    """All that there is. known: name of a cell -> why there is no need to look for its result.

    earlier: what was collected before, which serves where the run directory of a cell is no more.
    """
    spec, kept = study.spec, kept_cells(earlier, cells)
    records = [run_of(out, trial).provenance_path for trial in cells]
    return Study(
        name=spec.name,
        axes={axis: tuple(levels) for axis, levels in spec.cells.items()},
        seeds=spec.seeds,
        compare=spec.compare,
        cells=tuple(_cell(out, trial, known.get(trial.name), kept.get(trial.name)) for trial in cells),
        tuning=dict(choices),
        provenance=provenance(study.text, records, earlier.provenance if kept and earlier else {}),
    )


def why_no_result(out: Path, trial: Trial, known: NoResult | None, kept: Cell | None) -> NoResult | None:
    """Why a cell has none; None where its run directory, or an earlier study.h5, has one.

    known: what is known of it already. kept: what an earlier study.h5 said of it.
    """
    if known is not None:
        return known
    found = standing(run := run_of(out, trial), trial)
    if found.what == "finished" or (kept is not None and kept.result is not None):
        return None
    if found.has_failed:
        return NoResult("failed", found.reason)
    if kept is not None and not run.exists():
        return NoResult("failed", kept.reason)
    return NoResult("missing")


def _cell(out: Path, trial: Trial, known: NoResult | None, kept: Cell | None) -> Cell:
    why, result = why_no_result(out, trial, known, kept), None
    if why is None and is_finished(out, trial):
        try:
            result = read_result(run_of(out, trial), trial.job)
        except StorageError as error:
            why = NoResult("failed", str(error))
    elif why is None:
        assert kept is not None
        return kept
    return Cell(
        name=trial.name,
        levels=dict(trial.levels),
        seed=trial.seed,
        job_digest=trial.digest,
        rounds=trial.job.train.rounds,
        status=why.status if why else "finished",
        reason=why.reason if why else "",
        result=result,
    )


def provenance(text: str, records: Iterable[Path], earlier: Mapping[str, str] | None = None) -> dict[str, str]:
    """When and how a study was collected, and from what its launches were made: every commit and machine among them.

    text: of the study file. records: provenance.yaml of each launch. earlier: what an earlier collection told, where
    some of its results were kept.
    """
    launches = [launch for record in records for launch in _launches(record)]
    told = {
        key: [*(earlier or {}).get(key, "").split("; "), *(_told(launch.get(key)) for launch in launches)]
        for key in OF_LAUNCHES
    }
    return {
        "time": utc_now(),
        "command": " ".join(sys.argv),
        **{key: "; ".join(filter(None, dict.fromkeys(values))) for key, values in told.items()},
        "study": text,
    }


def _launches(record: Path) -> list[dict[str, Any]]:
    try:
        launches = read_yaml(record).value
    except JobError:  # not there, or damaged: the results are not
        return []
    return [launch for launch in launches if isinstance(launch, dict)] if isinstance(launches, list) else []


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value or "")
