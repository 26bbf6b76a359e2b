"""Differences between cells of a study, seed by seed and sample by sample, and the headline: is the method better?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parse_mpi.compare.schema import METHOD
from parse_mpi.compare.studyfile import Cell, Study
from parse_mpi.errors import ParseMpiError
from parse_mpi.measures.statistics import LEVEL, Difference, Pairs, compare_pairs, holm
from parse_mpi.studies.scores import Condition, Levels, Score, Scores, conditions, mean_accuracy, right_answers

Term = tuple[float, Levels]  # weight, and a level of every axis
Differences = Mapping[Condition, Mapping[str, Difference | None]]  # the method under test minus others, by their name

FEWEST_SEEDS = 2  # one tells nothing of how much seeds differ


@dataclass(frozen=True)
class Contest:
    """The method under test against the best of a group of baselines under one condition.

    baseline: the best on validation; None where there is no seed in which one of the group and the method under test
    finished. difference: after the last round; None where predictions are not known. in_best_round: mean difference
    where each cell counts with its best round on validation. p: after Holm's step-down over all contests.
    """

    condition: Condition
    group: str
    baseline: str | None
    difference: Difference | None
    in_best_round: float = np.nan
    p: float = np.nan

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return "not known"
        if self.difference.seeds < FEWEST_SEEDS:
            return "too few seeds"
        if self.p >= 1 - LEVEL:
            return "no difference shown"
        return "better" if self.difference.estimate > 0 else "worse"


def pair_up(study: Study, terms: Sequence[Term], score: Score) -> Pairs | None:
    """The weighted sum of the scores of some cells, one at each of these levels, seed by seed and sample by sample.

    A seed counts where all of the cells have a score; None where there is no such seed. Raises ParseMpiError where
    cells of a seed do not have the same test samples.
    """
    cells = [(weight, {cell.seed: cell for cell in study.select(**levels)}) for weight, levels in terms]
    found: list[Scores] = []
    for seed in study.seeds:
        if all(seed in of_levels for _, of_levels in cells):
            summed = _weighted_sum([(weight, of_levels[seed]) for weight, of_levels in cells], score)
            found += [summed] if summed else []
    if not found:
        return None
    is_same = len(found) > 1 and all(np.array_equal(scored.sample, found[0].sample) for scored in found)
    return Pairs(tuple(scored.value for scored in found), same_samples=is_same)


def best_of(study: Study, condition: Condition, names: Sequence[str]) -> str | None:
    """The method with the highest mean validation accuracy over seeds after the last round, the first of equals.

    This is all that is looked at; test accuracy is not. Seeds differ in how hard they are: where cells are missing,
    methods are ranked by how far they lead the method under test in the seeds that they share with it. One that shares
    less than half as many as another is passed over, as it may lead by luck. None where no method shares a seed.
    """
    paired = {name: _paired(study, condition, name, mean_accuracy(split="validation")) for name in names}
    leads = {name: lead for name, lead in paired.items() if lead}
    most = max((len(lead.by_seed) for lead in leads.values()), default=0)
    known = {name: -lead.mean for name, lead in leads.items() if 2 * len(lead.by_seed) >= most}
    return max(known, key=lambda name: known[name]) if known else None


def headline(study: Study, differences: Differences) -> list[Contest]:
    """The method under test against the best baseline of each group, condition by condition; [] without `compare`."""
    if study.compare is None:
        return []
    contests = []
    for condition in conditions(study):
        for group, names in study.compare.baselines.items():
            if baseline := best_of(study, condition, names):
                best = _paired(study, condition, baseline, mean_accuracy(row="best"))
                difference, in_best_round = differences[condition][baseline], best.mean if best else np.nan
                contests.append(Contest(condition, group, baseline, difference, in_best_round))
            else:
                contests.append(Contest(condition, group, None, None))
    tested = [contest for contest in contests if contest.difference is not None]
    adjusted = iter(holm([contest.difference.p for contest in tested if contest.difference]))
    return [replace(contest, p=next(adjusted)) if contest.difference else contest for contest in contests]


def every_difference(study: Study) -> Differences:
    """Accuracy of the method under test minus that of every other one after the last round, by condition.

    In the order of the study; None where no seed has predictions of both, nothing without `compare`.
    """
    others = [name for name in study.axes[METHOD] if study.compare and name != study.compare.method]
    return {
        condition: {name: _difference(study, condition, name) for name in others} for condition in conditions(study)
    }


def _difference(study: Study, condition: Condition, other: str) -> Difference | None:
    pairs = _paired(study, condition, other, right_answers())
    return compare_pairs([pairs]) if pairs else None


def _paired(study: Study, condition: Condition, other: str, score: Score) -> Pairs | None:
    """The method under test minus another."""
    assert study.compare is not None
    here = dict(condition)
    return pair_up(study, [(1.0, {**here, METHOD: study.compare.method}), (-1.0, {**here, METHOD: other})], score)


def _weighted_sum(terms: Sequence[tuple[float, Cell]], score: Score) -> Scores | None:
    """None where a cell has no score."""
    total: Scores | None = None
    for weight, cell in terms:
        scored = score(cell)
        if scored is None:
            return None
        if total is not None and not np.array_equal(scored.sample, total.sample):
            raise ParseMpiError(
                f"{terms[0][1].name} and {cell.name} have different test samples and can't be compared in pairs: "
                "what changes the split belongs to the axis `data` of the study"
            )
        total = Scores(scored.sample, weight * scored.value + (0 if total is None else total.value))
    return total
