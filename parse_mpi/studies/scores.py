"""What is compared between cells of a study: right answers by test sample, mean accuracies, rounds to a target.

Shapes: A agents, E evaluations, n test samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parse_mpi.compare.schema import DATA, METHOD
from parse_mpi.compare.studyfile import ENSEMBLE, SPLITS, Cell, Curve, Result, Study
from parse_mpi.measures.accuracy import WEIGHTINGS

Array = NDArray[np.float64]
Levels = dict[str, str]  # axis -> level
Condition = tuple[tuple[str, str], ...]  # levels of all axes but the method, in the order of the axes

TEST = SPLITS.index("test")
GLOBAL = WEIGHTINGS.index("global")
ALL, UNIMODAL, MULTIMODAL = "all", "unimodal", "multimodal"
OF_CEILING = 0.9  # a target, as a share of the accuracy of the ceiling


class Scores(NamedTuple):
    """A score [n] by test sample, or one for the whole cell, with what it belongs to (ids of samples, ascending)."""

    sample: NDArray[np.int64]
    value: Array


Score = Callable[[Cell], "Scores | None"]


def conditions(study: Study) -> list[Condition]:
    """All combinations of levels of the axes other than the method; the data vary slowest."""
    axes = [DATA, *(axis for axis in study.axes if axis not in (DATA, METHOD))]
    return [tuple(zip(axes, levels, strict=True)) for levels in product(*(study.axes[axis] for axis in axes))]


def condition_name(condition: Condition) -> str:
    """`digits`, or `digits, alpha = 0.1`."""
    return ", ".join(level if axis == DATA else f"{axis} = {level}" for axis, level in condition)


def members(result: Result, kind: str) -> NDArray[np.bool_]:
    """Which agents [A] took part in the end and are of a kind: all, unimodal, multimodal, or what they held."""
    held = np.array(result.kind, np.str_)
    is_multimodal = np.char.find(held, "+") >= 0
    named = {ALL: held != "", UNIMODAL: (held != "") & ~is_multimodal, MULTIMODAL: is_multimodal}
    counted: NDArray[np.bool_] = named.get(kind, held == kind)
    return counted


def right_answers(kind: str = ALL) -> Score:
    """Share of a kind's agents whose ensemble is right, by test sample after the last round; None where not known."""

    def score(cell: Cell) -> Scores | None:
        if cell.result is None or cell.result.final is None:
            return None
        final = cell.result.final
        known = final.label[TEST] >= 0
        label, sample, predicted_An = (
            final.label[TEST, known],
            final.sample[TEST, known],
            final.predicted[:, TEST, known],
        )
        counted = members(cell.result, kind) & (predicted_An >= 0).all(axis=1)
        if not known.any() or not counted.any():
            return None
        order = np.argsort(sample)
        return Scores(sample[order], (predicted_An[counted] == label).mean(axis=0)[order])

    return score


def mean_accuracy(
    kind: str = ALL,
    *,
    weighting: str = "global",
    prediction: str = ENSEMBLE,
    split: str = "test",
    row: Literal["best", "last"] = "last",
) -> Score:
    """Mean accuracy of a kind's agents, one number for a cell; None where no agent has one."""

    def score(cell: Cell) -> Scores | None:
        if cell.result is None or prediction not in cell.result.prediction:
            return None
        table = cell.result.accuracy(prediction, row=row, split=split, weighting=weighting)
        values = table[members(cell.result, kind)]
        return _of_cell(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else None

    return score


def rounds_to_target(targets: Mapping[Condition, float]) -> Score:
    """Rounds until the mean test accuracy of all agents reaches the target of a cell's condition.

    A run that never does counts with its last round, so that differences come out too small, not too large.
    """

    def score(cell: Cell) -> Scores | None:
        target = targets.get(condition_of(cell))
        if cell.result is None or target is None:
            return None
        row = reached(cell.result.curve, target)
        return _of_cell(cell.result.last_round if row is None else cell.result.curve.round[row])

    return score


def make_targets(study: Study) -> dict[Condition, float]:
    """OF_CEILING of the ceiling's mean test accuracy in its best rounds, by condition.

    In a study without a ceiling: of the highest mean over seeds that any method has on the same data.
    """
    named, found = study.compare.ceiling if study.compare else None, {}
    for condition in conditions(study):
        if named:
            cells = study.select(**dict(condition), **{METHOD: named})
            means = [_best(cells)] if cells else []
        else:
            everywhere = [dict(other) for other in conditions(study) if dict(other)[DATA] == dict(condition)[DATA]]
            groups = [study.select(**there, **{METHOD: m}) for there in everywhere for m in study.axes[METHOD]]
            means = [_best(cells) for cells in groups if cells]
        if np.isfinite(means).any():
            found[condition] = OF_CEILING * float(np.nanmax(means))
    return found


def reached(curve: Curve, target: float) -> int | None:
    """The first evaluation in which the mean test accuracy of all agents is at least the target."""
    rows = np.flatnonzero(curve.accuracy[:, curve.kind.index(ALL), TEST, GLOBAL] >= target)
    return int(rows[0]) if len(rows) else None


def condition_of(cell: Cell) -> Condition:
    axes = [DATA, *(axis for axis in cell.levels if axis not in (DATA, METHOD))]
    return tuple((axis, cell.levels[axis]) for axis in axes)


def mean_and_sd(values: Array) -> tuple[float, float]:
    """Over what is known of seeds; nan for the spread of fewer than two, and for the mean of none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan, float(known.std(ddof=1)) if len(known) > 1 else np.nan


def _best(cells: list[Cell]) -> float:
    """Mean over seeds of the mean test accuracy in the best round on validation."""
    values = [np.nanmean(cell.result.accuracy(row="best")[members(cell.result, ALL)]) for cell in cells if cell.result]
    return float(np.mean(values))


def _of_cell(value: float) -> Scores:
    return Scores(np.zeros(1, np.int64), np.array([value], float))
