"""Differences between cells of a study, seed by seed and sample by sample, and the headline: is the method better?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parse_mpi.compare.schema import METHOD
from parse_mpi.compare.studyfile import Cell, Study
from parse_mpi.errors import ParseMpiError
from parse_mpi.measures.statistics import LEVEL, Difference, Pairs, compare_pairs, holm
from parse_mpi.studies.scores import Condition, Levels, Score, Scores, conditions, mean_accuracy, right_answers

Term = tuple[float, Levels]  # weight, and a level of every axis

FEWEST_SEEDS = 2  # one tells nothing of how much seeds differ
DRAWS_OF_MANY = 2000  # for differences that are shown and not tested


@dataclass(frozen=True)
class Contest:
    """The method under test against the best of a group of baselines under one condition.

    baseline: has the highest mean validation accuracy over seeds; None where no baseline of the group finished.
    difference: None where there is no seed in which both finished. p: after Holm's step-down over all contests.
    """

    condition: Condition
    group: str
    baseline: str | None
    difference: Difference | None
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
    """The method with the highest mean validation accuracy over its seeds after the last round, the first of equals.

    This is all that is looked at; test accuracy is not. None where none of them has finished a seed.
    """
    score = mean_accuracy(split="validation")
    means = {}
    for name in names:
        scored = [score(cell) for cell in study.select(**dict(condition), **{METHOD: name})]
        values = [found.value.item() for found in scored if found is not None]
        if values:
            means[name] = np.mean(values)
    return max(means, key=lambda name: means[name]) if means else None


def headline(study: Study) -> list[Contest]:
    """The method under test against the best baseline of each group, condition by condition; [] without `compare`."""
    if study.compare is None:
        return []
    contests = []
    for condition in conditions(study):
        for group, names in study.compare.baselines.items():
            baseline = best_of(study, condition, names)
            difference = method_minus(study, condition, baseline) if baseline else None
            contests.append(Contest(condition, group, baseline, difference))
    tested = [contest for contest in contests if contest.difference is not None]
    adjusted = iter(holm([contest.difference.p for contest in tested if contest.difference]))
    return [replace(contest, p=next(adjusted)) if contest.difference else contest for contest in contests]


def every_difference(study: Study, condition: Condition) -> dict[str, Difference | None]:
    """The method under test minus every other one, in the order of the study; for looking at, not for testing."""
    if study.compare is None:
        return {}
    others = [name for name in study.axes[METHOD] if name != study.compare.method]
    return {name: method_minus(study, condition, name, draws=DRAWS_OF_MANY) for name in others}


def method_minus(study: Study, condition: Condition, other: str, **options: int) -> Difference | None:
    """Accuracy of the method under test minus that of another; None where no seed has predictions of both."""
    assert study.compare is not None
    here = dict(condition)
    terms = [(1.0, {**here, METHOD: study.compare.method}), (-1.0, {**here, METHOD: other})]
    pairs = pair_up(study, terms, right_answers())
    return compare_pairs([pairs], **options) if pairs else None


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
