"""From a study to the jobs that it launches, each resolved and checked by the ordinary job loader.

A trial is one launch to be made: of a cell, of a configuration that tuning tries, or for a few rounds to see how long
they take. Settings apply in this order, later ones over earlier ones: the base job, the levels of data and method, what
was tuned, the levels of the other axes, and what the study itself sets (seed, rounds by budget, evaluation).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from parse_mpi.compare.choices import Pair
from parse_mpi.compare.reading import BASE, StudyFile
from parse_mpi.compare.schema import DATA, METHOD, Settings
from parse_mpi.data.dataset import VALIDATION, Dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError, Problem, StudyError, counted
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, in_reading_order, job_digest, load_job
from parse_mpi.methods import make_method
from parse_mpi.plan import make_plan

Purpose = Literal["cell", "tuning", "calibration", "point"]
Levels = Mapping[str, str]  # axis -> level

SEED = "seed"  # a key of every job, told like an axis
TESTED: Settings = {"evaluate.test": True}  # of cells, whatever a whole `evaluate` says
MOST_ROUNDS = 1_000_000  # that a job may ask for
NO_VALIDATION = "tuning chooses by accuracy on validation samples, and the data have none"
ISOLATES = "with `isolate` agents that diverge drop out of all means, which flatters who has many of them"
FOLDERS: dict[Purpose, str] = {"cell": "cells", "tuning": "tuning", "calibration": "calibration", "point": "points"}


@dataclass(frozen=True)
class Trial:
    """A launch to be made, for `compare` or, as a point, for `scaling`.

    settings: what was tuned or is tried; overrides: all that is set beyond the base job.
    places: of each override, `file:line` of the study. ranks: None where they are those of all launches of the study.
    """

    purpose: Purpose
    name: str
    levels: Levels
    seed: int
    settings: Settings
    base: Path
    overrides: Mapping[str, str]
    places: Mapping[str, str]
    jobfile: JobFile
    ranks: int | None = None

    @property
    def job(self) -> Job:
        return self.jobfile.job

    @property
    def digest(self) -> str:
        """sha256 of what decides the trajectory."""
        return job_digest(self.job)

    @property
    def folder(self) -> Path:
        """Its run directory, relative to that of the study."""
        return Path(FOLDERS[self.purpose], self.name)

    def same_as(self, earlier: Job) -> bool:
        """Whether a run of that job has measured just what this one would."""
        fields = ("train", "evaluate")
        is_same_length = all(getattr(earlier, name) == getattr(self.job, name) for name in fields)
        return is_same_length and job_digest(earlier) == self.digest


class Resolver:
    """Makes trials, and collects what is wrong with them: the same problem once, with the cells that have it."""

    def __init__(self, study: StudyFile):
        self.study = study
        self._found: dict[Problem, list[Levels]] = {}
        self._loaded: tuple[str, Dataset] | None = None

    def cells(self, tuned: Callable[[str, str], Settings]) -> list[Trial]:
        """A trial for every combination of levels and every seed, in the order of the study file."""
        made = []
        for levels in combinations(self.study):
            settings = tuned(levels[DATA], levels[METHOD])
            made += self.trials("cell", ",".join(levels.values()), levels, self.study.spec.seeds, settings, TESTED)
        return made

    def trials(
        self, purpose: Purpose, name: str, levels: Levels, seeds: Sequence[int], settings: Settings,
        extra: Settings | None = None,
    ) -> list[Trial]:  # fmt: skip
        """A launch for each seed, its name with the seed behind it; none where there are problems.

        extra: what is set beside seed and rounds. The job is read once: no key but the seed itself depends on it.
        """
        base = self.study.base_job(levels[DATA])
        chosen = [*self._by_levels(levels, settings), (SEED, seeds[0], self.study.where("seeds"))]
        chosen += [(key, value, self.study.where()) for key, value in (extra or {}).items()]
        overrides, places = dict[str, str](), dict[str, str]()
        for key, value, place in chosen:
            overrides.pop(key, None)  # it applies where it was set last
            overrides[key] = json.dumps(value, ensure_ascii=False)
            places[key] = place
        try:
            jobfile = load_job(base, in_order(overrides))
            if self.study.spec.budget and "train.rounds" not in (extra or {}):
                overrides["train.rounds"] = str(self._rounds(jobfile.job))
                places["train.rounds"] = self.study.where("budget")
                jobfile = load_job(base, in_order(overrides))
            if jobfile.job.train.on_nonfinite == "isolate":
                raise JobError([Problem(jobfile.where("train", "on_nonfinite"), ISOLATES, "leave it out")])
        except JobError as error:
            for seed in seeds:
                self._note(error.problems, places, levels, seed)
            return []
        return [
            Trial(
                purpose, f"{name},{seed}", levels, seed, settings, base, {**overrides, SEED: str(seed)}, places,
                replace(jobfile, job=jobfile.job.model_copy(update={SEED: seed})),
            )
            for seed in seeds
        ]  # fmt: skip

    def check(self, trials: Iterable[Trial]) -> None:
        """Look for what only data, graphs and ranks can show."""
        for trial in sorted(trials, key=lambda trial: _data_of(trial.job)):  # so that each data set is loaded once
            try:
                dataset = self._dataset(trial.job)
                make_plan(trial.jobfile, dataset, self.study.spec.launch.ranks)
                if trial.purpose == "tuning" and not len(dataset.indices(VALIDATION)):
                    raise JobError([Problem(self.study.where("tuning"), NO_VALIDATION, "leave `tuning` out")])
            except JobError as error:
                self._note(error.problems, trial.places, trial.levels, trial.seed)

    def require_sound(self) -> None:
        """Raise StudyError with all problems so far."""
        if self._found:
            found = self._found.items()
            told = [replace(problem, what=f"{problem.what} ({self._where_it_shows(on)})") for problem, on in found]
            raise StudyError(in_reading_order(told))

    def _by_levels(self, levels: Levels, settings: Settings) -> Iterator[tuple[str, object, str]]:
        """Key, value and place of everything that levels and tuning set, in the order in which it applies."""
        cells = self.study.spec.cells
        for axis in (DATA, METHOD):
            for key, value in cells[axis][levels[axis]].items():
                if key != BASE:
                    yield key, value, self.study.where("cells", axis, levels[axis], key)
        for key, value in settings.items():
            yield key, value, self._searched(levels[METHOD], key)
        for axis in levels:
            if axis not in (DATA, METHOD):
                for key, value in cells[axis][levels[axis]].items():
                    yield key, value, self.study.where("cells", axis, levels[axis], key)

    def _searched(self, method: str, key: str) -> str:
        """Where the study says what may be drawn for a key."""
        assert self.study.spec.tuning is not None
        spaces = self.study.spec.tuning.space
        own = next(space for space in (method, "all") if key in spaces.get(space, {}))
        return self.study.where("tuning", "space", own, key)

    def _rounds(self, job: Job) -> int:
        """The most rounds that stay within the budget of gradient steps. Raises StudyError where that is none."""
        assert self.study.spec.budget is not None
        budget = self.study.spec.budget.gradient_steps
        rounds = bisect_right(range(1, MOST_ROUNDS + 1), budget, key=lambda rounds: gradient_steps(job, rounds))
        if rounds == 0:
            what = f"{counted(budget, 'gradient step')} are less than one round of {job.method.name}"
            raise StudyError([Problem(self.study.where("budget", "gradient_steps"), what, "raise it")])
        return rounds

    def _dataset(self, job: Job) -> Dataset:
        """The data set of a job; the last one is kept."""
        if self._loaded is None or self._loaded[0] != _data_of(job):
            self._loaded = None  # two may be too large for the memory
            self._loaded = _data_of(job), load_dataset(job.data, job.seed)
        return self._loaded[1]

    def _note(self, problems: Iterable[Problem], places: Mapping[str, str], levels: Levels, seed: int) -> None:
        for problem in problems:
            key = problem.where.removeprefix("--set ")
            shown = self._found.setdefault(replace(problem, where=places.get(key, problem.where)), [])
            shown.append({**levels, SEED: str(seed)})

    def _where_it_shows(self, affected: Sequence[Levels]) -> str:
        """The levels that make a problem; axes at all of whose levels it shows are left out."""
        axes = {axis: len(levels) for axis, levels in self.study.spec.cells.items()}
        named = []
        for axis, count in (axes | {SEED: len(self.study.spec.seeds)}).items():
            found = list(dict.fromkeys(levels[axis] for levels in affected))
            if len(found) < count:
                named.append(f"{axis}={'|'.join(found)}")
        return f"with {', '.join(named)}" if named else "in all cells"


def pair_of(trial: Trial) -> Pair:
    """Its levels of data and method."""
    return trial.levels[DATA], trial.levels[METHOD]


def gradient_steps(job: Job, rounds: int) -> int:
    """Gradient steps of an agent that takes part in all of so many rounds of a job."""
    of_length = job.model_copy(update={"train": job.train.model_copy(update={"rounds": rounds})})
    return make_method(of_length).gradient_steps(rounds, job.train.local_steps)


def combinations(study: StudyFile) -> Iterator[dict[str, str]]:
    """Every combination of levels; the last axis varies fastest."""
    axes = study.spec.cells
    for levels in product(*axes.values()):
        yield dict(zip(axes, levels, strict=True))


def _data_of(job: Job) -> str:
    """What decides which data set a job loads."""
    source = job.data.model_dump_json(include={"source"})
    return f"{source} {job.seed}"


def in_order(overrides: Mapping[str, str]) -> list[str]:
    """As the command line takes them after --set."""
    return [f"{key}={value}" for key, value in overrides.items()]
