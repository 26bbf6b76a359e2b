"""Pictures of totals: which classes each agent saw, where time went, what ranks sent each other.

Shapes: A agents, C classes, K ranks, R rounds.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator
from numpy.typing import NDArray

from parse_mpi.run.summary import size_text
from parse_mpi.studies.recorded import RecordedRun, count_of
from parse_mpi.studies.series import Spread
from parse_mpi.studies.style import PALETTE, dress, new_figure, short

MOST_NAMED = 30  # classes that get a label each
PHASE_COLOURS = tuple(colour for colour in PALETTE if colour != "#000000")
MOST_FIGURES = 8  # ranks whose bytes are written into the matrix


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


def time_figure(run: RecordedRun) -> Figure | None:
    """Where the time of a round goes on each rank and, with several ranks, how many bytes went from which to which."""
    if "ranks/seconds" not in run.metrics.arrays:
        return None
    has_traffic = len(run.metrics.arrays.get("links/bytes", ())) > 0
    figure = new_figure(9.5 if has_traffic else 6.0, 4.2, run.title())
    panels = figure.subplots(
        1, 2 if has_traffic else 1, squeeze=False, width_ratios=(1.25, 1) if has_traffic else (1,)
    )[0]
    _draw_phases(panels[0], run)
    if has_traffic:
        _draw_links(panels[1], run)
    return figure


def mean_seconds(run: RecordedRun) -> NDArray[np.float64]:
    """Seconds a round [K, phase], mean over the rounds in which the rank took part."""
    seconds = run.metrics["ranks/seconds"]
    by_phase = [Spread.of(seconds[:, :, k].T).mean for k in range(seconds.shape[2])]
    return np.stack(by_phase, axis=1)


def link_bytes(run: RecordedRun) -> NDArray[np.int64]:
    """Bytes that rank i sent to rank j in the whole run [K, K]."""
    total = np.zeros((run.metrics["ranks/seconds"].shape[1],) * 2, np.int64)
    np.add.at(total, (run.metrics["links/source"], run.metrics["links/destination"]), run.metrics["links/bytes"])
    return total


def _draw_phases(axes: Axes, run: RecordedRun) -> None:
    seconds, phases = mean_seconds(run), run.labels("ranks/seconds", "phase")
    ranks, bottom = np.arange(len(seconds)), np.zeros(len(seconds))
    width = 1.0 if len(ranks) > 40 else 0.7
    for k, phase in enumerate(phases):
        axes.bar(
            ranks,
            seconds[:, k],
            width,
            bottom,
            label=phase.replace("_", " "),
            color=PHASE_COLOURS[k % len(PHASE_COLOURS)],
        )
        bottom += seconds[:, k]
    has_changed = bool(np.isnan(run.metrics["ranks/seconds"]).any())
    rounds = (
        "the rounds that each rank took part in" if has_changed else count_of(len(run.metrics["ranks/round"]), "round")
    )
    dress(axes, f"Where the time of a round goes\n(mean of {rounds})", "rank", "time a round")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_major_locator(FixedLocator(range(0, len(ranks), -(-len(ranks) // 12))))
    beside = max(0.6, 0.5 * (3 - len(ranks)))
    axes.set(xlim=(-beside, len(ranks) - 1 + beside), ylim=(0, 1.05 * float(bottom.max()) or 1))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_links(axes: Axes, run: RecordedRun) -> None:
    total = link_bytes(run)
    image = axes.imshow(np.ma.masked_equal(total, 0), cmap=colormaps["YlGnBu"], vmin=0)
    axes.figure.colorbar(image, ax=axes, format=EngFormatter("B"), shrink=0.8).ax.tick_params(labelsize=8)
    dress(axes, f"Sent between ranks: {size_text(int(total.sum()))} in all", "to rank", "from rank")
    axes.grid(visible=False)
    for locator in (axes.xaxis, axes.yaxis):
        locator.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(total) <= MOST_FIGURES:
        for i, j in zip(*np.nonzero(total), strict=True):
            dark = total[i, j] > 0.6 * total.max()
            axes.text(
                j, i, size_text(total[i, j]), ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
