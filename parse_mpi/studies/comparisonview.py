"""Pictures of a study: accuracy by round, differences with their intervals, accuracy by the level of an axis.

Shapes: E evaluations, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from parse_mpi.compare.schema import DATA, METHOD
from parse_mpi.compare.studyfile import Cell, Result, Study
from parse_mpi.measures.statistics import LEVEL, Array, Difference
from parse_mpi.studies.contrasts import FEWEST_SEEDS, Contest, Differences
from parse_mpi.studies.methodrows import over_seeds
from parse_mpi.studies.scores import ALL, GLOBAL, TEST, Condition, condition_name, conditions, mean_and_sd, members
from parse_mpi.studies.style import PALETTE, Style, count_rounds, dress, legend_below, new_figure, styles

PANEL_IN = (4.6, 3.1)
MOST_ABREAST = 3
MOST_BANDS = 6  # more of them hide each other: then only the method under test has one
ROW_IN = 0.24  # of a forest
NEUTRAL = "#555555"
VERDICT_COLOURS = {"better": PALETTE[0], "worse": PALETTE[1]}


def comparison_figures(
    study: Study, contests: Sequence[Contest], differences: Differences
) -> Iterator[tuple[str, Figure]]:
    """Name of the file, without .png, and the picture; those for which a study has nothing are left out."""
    looks = styles(study.axes[METHOD])
    if any(contest.difference for contest in contests):
        yield "headline", _headline_figure(study, contests)
    for data, group in groupby(conditions(study), key=lambda condition: dict(condition)[DATA]):
        here = [condition for condition in group if study.select(**dict(condition))]
        if here:
            yield f"accuracy-{data}", _rounds_figure(study, here, looks)
        known = [condition for condition in here if any(differences[condition].values())]
        if known:
            yield f"differences-{data}", _forests_figure(study, known, differences)
    for axis, levels in study.axes.items():
        if axis not in (DATA, METHOD) and len(levels) > 1 and study.select():
            yield f"by-{axis}", _levels_figure(study, axis, looks)


# -- accuracy by round -----------------------------------------------------------------------------------------------


def _rounds_figure(study: Study, here: Sequence[Condition], looks: Mapping[str, Style]) -> Figure:
    """A panel for each condition, a line for each method: mean over seeds, one standard deviation as a band."""
    present = [name for name in looks if study.select(data=dict(here[0])[DATA], **{METHOD: name})]
    banded = present if len(present) <= MOST_BANDS or not study.compare else [study.compare.method]
    whose = "bands" if banded == present else f"band ({banded[0]} alone)"
    what = f"mean accuracy of all agents on the common test split, mean over seeds; {whose}: one standard deviation"
    figure, panels = _panels(len(here), f"{study.name}: {what}", same_y=True)
    for axes, condition in zip(panels, here, strict=True):
        dress(axes, condition_name(condition), "round", "accuracy (%)")
        for name in present:
            cells = study.select(**dict(condition), **{METHOD: name})
            if cells:
                rounds, mean, sd = _curve(cells)
                axes.plot(rounds, mean, **looks[name]._asdict(), linewidth=1.4, marker="o" if len(rounds) == 1 else "")
                if name in banded:
                    axes.fill_between(rounds, mean - sd, mean + sd, color=looks[name].color, alpha=0.15, linewidth=0)
        count_rounds(axes)
    legend_below(figure, [Line2D([], [], **looks[name]._asdict(), label=name) for name in present])
    return figure


def _curve(cells: Sequence[Cell]) -> tuple[Array, Array, Array]:
    """Rounds [E] that were evaluated in every seed, mean and standard deviation over seeds in percent."""
    curves = [cell.result.curve for cell in cells if cell.result]
    rounds = sorted(set.intersection(*(set(curve.round.tolist()) for curve in curves)))
    values_SE = np.array(
        [curve.accuracy[np.isin(curve.round, rounds), curve.kind.index(ALL), TEST, GLOBAL] for curve in curves]
    )
    mean, sd = np.array([mean_and_sd(values) for values in values_SE.T]).reshape(-1, 2).T
    return np.array(rounds, float), 100 * mean, 100 * np.nan_to_num(sd)


# -- differences -----------------------------------------------------------------------------------------------------


def _headline_figure(study: Study, contests: Sequence[Contest]) -> Figure:
    """A row for each condition and group."""
    assert study.compare is not None
    what = f"{study.compare.method} minus the best baseline of each group, {LEVEL:.0%} intervals; colours: after Holm"
    figure = new_figure(8.5, 1.5 + ROW_IN * len(contests), f"{study.name}: {what}")
    axes = figure.subplots()
    labels = [f"{condition_name(c.condition)}: {c.baseline or 'none'} ({c.group})" for c in contests]
    colours = [VERDICT_COLOURS.get(contest.verdict, NEUTRAL) for contest in contests]
    _forest(axes, labels, [contest.difference for contest in contests], colours)
    dress(axes, "", f"points of accuracy, right of 0: {study.compare.method} is better")
    _grid_along_x(axes)
    handles = [Line2D([], [], color=colour, marker="o", label=word) for word, colour in VERDICT_COLOURS.items()]
    legend_below(figure, [*handles, Line2D([], [], color=NEUTRAL, marker="o", label="no difference shown")])
    return figure


def _forests_figure(study: Study, known: Sequence[Condition], differences: Differences) -> Figure:
    """A panel for each condition, a row for every other method."""
    assert study.compare is not None
    others = list(differences[known[0]])
    what = f"{study.compare.method} minus every other method, {LEVEL:.0%} intervals without correction for many looks"
    figure, panels = _panels(len(known), f"{study.name}: {what}", height_in=0.9 + ROW_IN * len(others))
    for axes, condition in zip(panels, known, strict=True):
        found = [differences[condition][name] for name in others]
        _forest(axes, others, found, [_colour(difference) for difference in found])
        dress(axes, condition_name(condition), "points of accuracy")
        _grid_along_x(axes)
    return figure


def _colour(difference: Difference | None) -> str:
    if difference is None or difference.seeds < FEWEST_SEEDS or difference.low <= 0 <= difference.high:
        return NEUTRAL
    return VERDICT_COLOURS["better" if difference.low > 0 else "worse"]


def _forest(
    axes: Axes, labels: Sequence[str], differences: Sequence[Difference | None], colours: Sequence[str]
) -> None:
    """Estimates with intervals, the first on top; a row without a difference stays empty and says so."""
    axes.axvline(0, color="black", linewidth=0.8)
    for k, (difference, colour) in enumerate(zip(differences, colours, strict=True)):
        if difference is None:
            axes.annotate(
                "no result", (0, k), (4, 0), textcoords="offset points", va="center", fontsize=7, color=NEUTRAL
            )
        else:
            axes.plot([100 * difference.low, 100 * difference.high], [k, k], color=colour, linewidth=1.6)
            axes.plot(100 * difference.estimate, k, color=colour, marker="o", markersize=5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _grid_along_x(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))


# -- accuracy by level -----------------------------------------------------------------------------------------------


def _levels_figure(study: Study, axis: str, looks: Mapping[str, Style]) -> Figure:
    """A panel for each data set: mean over seeds and the levels of further axes, one standard deviation as a bar."""
    levels = study.axes[axis]
    what = f"mean accuracy of all agents by {axis}, after the last round; bars: one standard deviation over seeds"
    known = [data for data in study.axes[DATA] if study.select(**{DATA: data})]
    figure, panels = _panels(len(known), f"{study.name}: {what}")
    for axes, data in zip(panels, known, strict=True):
        dress(axes, data, axis, "accuracy (%)")
        for k, (name, look) in enumerate(looks.items()):
            shift = 0.3 * ((k + 0.5) / len(looks) - 0.5)  # side by side: bars would hide each other
            found = [_of_level(study, {DATA: data, METHOD: name, axis: level}) for level in levels]
            mean, sd = 100 * np.array(found).T
            axes.errorbar(
                np.arange(len(levels)) + shift, mean, np.nan_to_num(sd), **look._asdict(), marker="o", markersize=4
            )
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlim(-0.5, len(levels) - 0.5)
    legend_below(figure, [Line2D([], [], **look._asdict(), label=name) for name, look in looks.items()])
    return figure


def _of_level(study: Study, levels: Mapping[str, str]) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the mean over all cells of a seed."""
    cells = study.select(**levels)
    by_seed = [over_seeds([cell for cell in cells if cell.seed == seed], _mean_accuracy)[0] for seed in study.seeds]
    return mean_and_sd(np.array(by_seed))


def _mean_accuracy(result: Result) -> float:
    return mean_and_sd(result.accuracy()[members(result, ALL)])[0]


def _panels(
    count: int, title: str, height_in: float = PANEL_IN[1], *, same_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most MOST_ABREAST in a row; same_y: on one scale."""
    columns = min(count, MOST_ABREAST)
    rows = -(-count // columns)
    figure = new_figure(max(PANEL_IN[0] * columns, 8.5), height_in * rows + 0.5, title)
    grid: list[Axes] = figure.subplots(rows, columns, squeeze=False, sharey=same_y).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]
