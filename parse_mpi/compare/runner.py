"""`parse-mpi compare`: tune, run every cell, collect the results.

Nothing is done twice: what is finished is kept as long as its job is the same, what is not is continued, and what
another compare in the same directory is at work on is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.compare.choices import Choice, Pair, read_choices, write_choices
from parse_mpi.compare.directory import RESULT, make_directory
from parse_mpi.compare.estimate import Cost, calibrated_costs, calibrations, measured_costs
from parse_mpi.compare.gather import Fate, fates, gather
from parse_mpi.compare.kept import kept_results, kept_study, put_aside
from parse_mpi.compare.pool import Pool
from parse_mpi.compare.reading import StudyFile, read_study
from parse_mpi.compare.schema import DATA, METHOD
from parse_mpi.compare.standing import is_finished, run_of, standing
from parse_mpi.compare.studyfile import write_study
from parse_mpi.compare.trials import Resolver, Trial, pair_of
from parse_mpi.compare.tuning import choose, configurations, key_of, missing
from parse_mpi.errors import Problem, StorageError, StudyError
from parse_mpi.joberrors import key_hint

NOT_TUNED = "tuning has not chosen its settings yet"
NOTHING_WORKED = "tuning: every configuration diverged on some seed"


@dataclass(frozen=True)
class Share:
    """The number-th of `of` shares of all launches, counted from 1: every array task takes one."""

    number: int
    of: int

    def part(self, trials: Sequence[Trial]) -> Sequence[Trial]:
        return trials[self.number - 1 :: self.of]


ALL = Share(1, 1)


@dataclass(frozen=True)
class Ended:
    """How a compare ended. failed: cell, or launch of tuning, -> reason. open: how many cells, of a share if it ran
    one, are neither finished nor failed.

    result: study.h5, where it was written. aside: the one before, where it holds results that this one lacks.
    """

    failed: dict[str, str]
    open: int
    result: Path | None = None
    aside: Path | None = None


class Comparison:
    """A study and the directory of its results. only: axis -> level of the cells that are wanted."""

    def __init__(self, path: Path, out: Path, only: Mapping[str, str]):
        """Raises StudyError where the study or one of its jobs is wrong, StorageError where `out` is something else."""
        self.study = read_study(path)
        self.out = out
        self.only = only
        self.resolver = Resolver(self.study)
        _check_only(self.study, only)
        self.tried = configurations(self.study, self.resolver) if self.study.spec.tuning else {}
        self.kept = kept_study(out)
        self._check()
        make_directory(self.study.spec.name, self.study.text, out)
        self.pool = Pool(out, self.study.spec.launch)

    def run(self, share: Share = ALL) -> Ended:
        """Tune and run what is not finished; then collect the results, unless cells are left to others."""
        failed = self._tune(share)
        choices = self.choices()
        cells = self.cells(choices)
        known = self._without_settings(cells, choices)
        mine = share.part([trial for trial in cells if self._is_wanted(trial)])
        kept = kept_results(self.kept, mine)
        outcomes = self.pool.run([trial for trial in mine if trial.name not in known | kept], "cells")
        known |= {o.trial.name: Fate("failed", o.reason) for o in outcomes if o.status == "failed"}
        failed |= {name: why.reason for name, why in known.items() if why.status == "failed"}
        found = fates(self.out, cells if share == ALL else mine, known, self.kept)
        left = _left(found)
        return Ended(failed, left, *(() if left or share != ALL else self._collect(cells, choices, found)))

    def report(self) -> Ended:
        """Collect the results that there are; starts nothing."""
        choices = self.choices()
        cells = self.cells(choices)
        found = fates(self.out, cells, self._without_settings(cells, choices), self.kept)
        return Ended({}, _left(found), *self._collect(cells, choices, found))

    def costs(self) -> dict[Pair, Cost]:
        """What a launch of each wanted pair takes; those of which nothing has finished are calibrated now."""
        finished = [*self.cells(self.choices()), *self.tuning_launches()]
        costs = measured_costs(self.out, finished)
        pairs = dict.fromkeys(pair_of(trial) for trial in finished if self._is_wanted(trial))
        short = calibrations(self.study, self.resolver, [pair for pair in pairs if pair not in costs])
        self.resolver.require_sound()
        self.pool.run(short, "calibration")
        return costs | dict(calibrated_costs(self.out, short))

    def unfinished(self) -> tuple[list[Trial], list[Trial]]:
        """Cells and launches of tuning that are wanted and not finished."""
        choices = self.choices()
        cells, launches = self.cells(choices), missing(self.tried, choices)
        kept = kept_results(self.kept, cells)
        left = [trial for trial in cells if trial.name not in kept and self._is_open(trial)]
        return left, [trial for trial in launches if self._is_open(trial)]

    def _check(self) -> None:
        """Raise StudyError with all that is wrong with launches that have not begun."""
        choices = self.choices()
        cells = self._cells(choices)
        kept = kept_results(self.kept, cells)
        new = [*missing(self.tried, choices), *(trial for trial in cells if trial.name not in kept)]
        self.resolver.check(trial for trial in new if not run_of(self.out, trial).exists())
        self.resolver.require_sound()

    def choices(self) -> dict[Pair, Choice]:
        """What tuning.yaml, or an earlier study.h5, has frozen for what this study tries."""
        found = (self.kept.tuning if self.kept else {}) | read_choices(self.out) if self.tried else {}
        return {pair: c for pair, c in found.items() if pair in self.tried and c.key == key_of(self.tried[pair])}

    def cells(self, choices: Mapping[Pair, Choice]) -> list[Trial]:
        """All cells, with the settings that were chosen."""
        found = self._cells(choices)
        self.resolver.require_sound()
        return found

    def tuning_launches(self) -> list[Trial]:
        """All of them, whether they are still needed or not."""
        return missing(self.tried, {})

    def _tune(self, share: Share) -> dict[str, str]:
        """Run what tuning lacks, and freeze the choices of all pairs that lack nothing any more.

        A configuration that diverges is out. Any other failure says nothing about it (a full disk, a time limit that
        was met), so that its pair is left open: returns launch -> reason of these.
        """
        choices = self.choices()
        wanted = [trial for trial in self.tuning_launches() if self._is_wanted(trial)]
        lacking = [t for t in share.part(wanted) if pair_of(t) not in choices and not self._is_settled(t)]
        outcomes = self.pool.run(lacking, "tuning") if lacking else []
        found, damaged = dict[Pair, Choice](), dict[str, str]()
        for pair in dict.fromkeys(map(pair_of, wanted)):
            trials = missing({pair: self.tried[pair]}, choices)
            if trials and all(map(self._is_settled, trials)):
                try:
                    found[pair] = choose(self.out, self.tried[pair])
                except StorageError as error:  # of the metrics of one of them
                    damaged[f"tuning of {','.join(pair)}"] = str(error)
        if found:
            write_choices(self.out, self.choices() | found)
        failed = [o for o in outcomes if o.status == "failed" and pair_of(o.trial) not in found]
        return damaged | {str(outcome.trial.folder): outcome.reason for outcome in failed}

    def _is_settled(self, trial: Trial) -> bool:
        """Whether another launch would show nothing new."""
        return standing(run_of(self.out, trial), trial).what in ("finished", "diverged")

    def _cells(self, choices: Mapping[Pair, Choice]) -> list[Trial]:
        return self.resolver.cells(lambda *pair: choices[pair].settings if pair in choices else {})

    def _without_settings(self, cells: Sequence[Trial], choices: Mapping[Pair, Choice]) -> dict[str, Fate]:
        """Cells that can't run, because tuning has not chosen their settings, or could not."""
        if not self.tried:
            return {}
        open_pairs = {pair: Fate("missing", NOT_TUNED) for pair in self.tried if pair not in choices}
        hopeless = {pair: Fate("failed", NOTHING_WORKED) for pair, c in choices.items() if c.chosen is None}
        none = open_pairs | hopeless
        return {trial.name: none[pair_of(trial)] for trial in cells if pair_of(trial) in none}

    def _is_wanted(self, trial: Trial) -> bool:
        """Whether a cell is, or a launch of tuning that a wanted cell needs."""
        axes = (DATA, METHOD) if trial.purpose == "tuning" else self.study.spec.cells
        return all(trial.levels[axis] == level for axis, level in self.only.items() if axis in axes)

    def _is_open(self, trial: Trial) -> bool:
        return self._is_wanted(trial) and not is_finished(self.out, trial)

    def _collect(
        self, cells: Sequence[Trial], choices: Mapping[Pair, Choice], found: Mapping[str, Fate]
    ) -> tuple[Path, Path | None]:
        """Write study.h5. Returns its path, and that of the one before where that had to be put aside."""
        study = gather(self.study, self.out, cells, choices, found, self.kept)
        aside = put_aside(self.out, self.kept, study)
        write_study(self.out / RESULT, study)
        self.kept = study
        return self.out / RESULT, aside


def _left(found: Mapping[str, Fate]) -> int:
    """How many cells are neither finished nor failed."""
    return sum(fate.status == "missing" for fate in found.values())


def _check_only(study: StudyFile, only: Mapping[str, str]) -> None:
    """Raises StudyError where --only names what the study does not have."""
    axes, problems = study.spec.cells, []
    for axis, level in only.items():
        if axis not in axes:
            what, hint = f"there is no axis {axis}", key_hint(axis, list(axes))
        elif level not in axes[axis]:
            what, hint = f"the axis {axis} has no level {level}", key_hint(level, list(axes[axis]))
        else:
            continue
        problems.append(Problem(f"--only {axis}={level}", what, hint))
    if problems:
        raise StudyError(problems)
