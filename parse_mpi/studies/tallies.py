"""The picture of what agents learn from: training samples by agent and class.

Shapes: A agents, C classes.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parse_mpi.studies.recorded import RecordedRun
from parse_mpi.studies.style import PALETTE, dress, new_figure, short

MOST_NAMED = 30  # classes that get a label each


def classes_figure(run: RecordedRun) -> Figure | None:
    """Training samples by agent and class as a heat map, agents grouped by kind, and their totals beside it."""
    histogram_AC = run.metrics["agents/class_histogram"]
    order = np.concatenate(list(run.listed().values()))
    counts = histogram_AC[order]
    agent_count, class_count = counts.shape
    width_in, height_in = (
        float(np.clip(4.5 + 0.3 * class_count, 6.5, 12)),
        float(np.clip(1.8 + 0.14 * agent_count, 3.2, 9)),
    )
    what = "Training samples of each agent by class (white: none) and in all"
    figure = new_figure(width_in, height_in, f"{run.title()}\n{what}")
    heat, totals = figure.subplots(1, 2, sharey=True, width_ratios=(3.2, 1))
    image = heat.imshow(
        np.ma.masked_equal(counts, 0), aspect="auto", cmap=colormaps["YlGnBu"], norm=PowerNorm(0.5, vmin=0)
    )
    figure.colorbar(image, ax=heat, pad=0.02).ax.tick_params(labelsize=8)
    dress(heat, "", "class")
    _name_classes(heat, run.labels("agents", "class_names"))
    _name_kinds(heat, totals, run)
    totals.barh(np.arange(agent_count), counts.sum(1), height=1.0 if agent_count > 100 else 0.8, color=PALETTE[0])
    dress(totals, "", "samples in all")
    totals.tick_params(left=False)
    totals.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for axes in (heat, totals):
        axes.grid(visible=False)
    return figure


def _name_classes(axes: Axes, names: list[str]) -> None:
    if len(names) <= MOST_NAMED:
        is_long = max(map(len, names)) > 3
        axes.set_xticks(range(len(names)), names, rotation=60 if is_long else 0, ha="right" if is_long else "center")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"class (number; {len(names)} classes)", fontsize=9)


def _name_kinds(heat: Axes, totals: Axes, run: RecordedRun) -> None:
    """The kind beside its block of rows, and a line between blocks."""
    sizes = np.array([len(ids) for ids in run.listed().values()])
    ends = np.cumsum(sizes)
    heat.set_yticks(
        ends - sizes / 2 - 0.5, [f"{short(kind)}\n({size})" for kind, size in zip(run.listed(), sizes, strict=True)]
    )
    heat.tick_params(axis="y", length=0)
    for axes in (heat, totals):
        for end in ends[:-1]:
            axes.axhline(end - 0.5, color="#555555", linewidth=0.8)
