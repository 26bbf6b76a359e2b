"""From the run directories of a study to what study.h5 holds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from parse_mpi.compare.choices import Choice, Pair
from parse_mpi.compare.collect import read_result
from parse_mpi.compare.kept import kept_cells
from parse_mpi.compare.reading import StudyFile
from parse_mpi.compare.standing import run_of, standing
from parse_mpi.compare.studyfile import Cell, Study
from parse_mpi.compare.trials import Trial
from parse_mpi.errors import JobError, StorageError
from parse_mpi.storage.rundir import utc_now
from parse_mpi.yamlfile import read_yaml

OF_LAUNCHES = ("commit", "machine", "versions")  # what provenance.yaml of a run tells of its launches


class Fate(NamedTuple):
    """What has become of a cell: its run directory has a result, an earlier study.h5 has, or there is none and why."""

    status: Literal["finished", "kept", "failed", "missing"]
    reason: str = ""


def fates(out: Path, cells: Sequence[Trial], known: Mapping[str, Fate], earlier: Study | None) -> dict[str, Fate]:
    """By name of a cell. known: of those that there is no need to look at. earlier: what was collected before."""
    kept = kept_cells(earlier, cells)
    return {trial.name: known.get(trial.name) or _fate(out, trial, kept.get(trial.name)) for trial in cells}


def gather(
    study: StudyFile,
    out: Path,
    cells: Sequence[Trial],
    choices: Mapping[Pair, Choice],
    found: Mapping[str, Fate],
    earlier: Study | None,
) -> Study:
    """All that there is, by the fates of the cells."""
    spec, kept = study.spec, kept_cells(earlier, cells)
    records = [run_of(out, trial).provenance_path for trial in cells]
    return Study(
        name=spec.name,
        axes={axis: tuple(levels) for axis, levels in spec.cells.items()},
        seeds=spec.seeds,
        compare=spec.compare,
        cells=tuple(
            kept[trial.name] if found[trial.name].status == "kept" else _cell(out, trial, found[trial.name])
            for trial in cells
        ),
        tuning=dict(choices),
        provenance=provenance(study.text, records, earlier.provenance if kept and earlier else {}),
    )


def _fate(out: Path, trial: Trial, kept: Cell | None) -> Fate:
    found = standing(run := run_of(out, trial), trial)
    if found.what == "finished":
        return Fate("finished")
    if kept is not None and kept.result is not None:
        return Fate("kept")
    if found.has_failed:
        return Fate("failed", found.reason)
    if kept is not None and not run.exists():
        return Fate("failed", kept.reason)
    return Fate("missing")


def _cell(out: Path, trial: Trial, fate: Fate) -> Cell:
    result = None
    if fate.status == "finished":
        try:
            result = read_result(run_of(out, trial), trial.job)
        except StorageError as error:
            fate = Fate("failed", str(error))
    return Cell(
        name=trial.name,
        levels=dict(trial.levels),
        seed=trial.seed,
        job_digest=trial.digest,
        rounds=trial.job.train.rounds,
        status="finished" if result else "failed" if fate.status == "failed" else "missing",
        reason=fate.reason,
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
