"""Pictures of what a run costs: where time went, what ranks sent each other, what a budget kept back.

Shapes: K ranks, R rounds, S slices.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator
from numpy.typing import NDArray

from parse_mpi.run.summary import size_text
from parse_mpi.studies.recorded import RecordedRun, count_of
from parse_mpi.studies.series import Spread, mark_events
from parse_mpi.studies.style import PALETTE, count_rounds, dress, new_figure

PHASE_COLOURS = (*(colour for colour in PALETTE if colour != "#000000"), "#F0E442")  # bars show yellow well enough
MOST_FIGURES = 8  # ranks whose bytes are written into the matrix


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


def mean_travel(run: RecordedRun) -> NDArray[np.float64]:
    """Seconds [K] from posting a round's exchange until its rows had arrived, mean over the rounds of a rank."""
    return Spread.of(run.metrics["ranks/travel_seconds"].T).mean


def budget_figure(run: RecordedRun) -> Figure | None:
    """What a budget let through and what it kept back in a round, by slice, and kept back round by round."""
    waiting_RS = run.metrics.arrays.get("rounds/waiting_bytes")
    if waiting_RS is None or not waiting_RS.any():
        return None
    sent_RS, names = run.metrics["rounds/payload_bytes"], run.labels("rounds/waiting_bytes", "slice")
    shown = [k for k in range(len(names)) if (sent_RS + waiting_RS)[:, k].any()]
    limit = size_text(run.job.exchange.budget_bytes_per_link or 0)
    what = f"A budget of {limit} for each link and round: what agents sent, and what waited for its turn"
    figure = new_figure(9.5, 1.9 + 0.28 * len(shown), f"{run.title()}\n{what}")
    bars, share = figure.subplots(1, 2, width_ratios=(1.4, 1))
    sent, waiting = sent_RS[:, shown].mean(0), waiting_RS[:, shown].mean(0)
    bars.barh(range(len(shown)), sent, color=PALETTE[0], label="sent")
    bars.barh(range(len(shown)), waiting, left=sent, color="#C9C9C9", label="waited")
    bars.set_yticks(range(len(shown)), [names[k] for k in shown])
    bars.invert_yaxis()
    dress(bars, "Mean over the rounds, all links together", "bytes a round")
    bars.xaxis.set_major_formatter(EngFormatter("B"))
    bars.legend(fontsize=8, frameon=False, loc="lower right")
    with np.errstate(invalid="ignore"):
        part = sent_RS.sum(1) / (sent_RS + waiting_RS).sum(1)
    share.plot(run.metrics["rounds/round"], 100 * part, color=PALETTE[0])
    dress(share, "Share of what was due that was sent (%)", "round")
    share.set_ylim(0, 105)
    mark_events(share, run)
    count_rounds(share)
    return figure


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
    travel = mean_travel(run)
    axes.plot(ranks, travel, linestyle="", marker="D", color="black", markersize=4, label="rows under way")
    has_changed = bool(np.isnan(run.metrics["ranks/seconds"]).any())
    rounds = (
        "the rounds that each rank took part in" if has_changed else count_of(len(run.metrics["ranks/round"]), "round")
    )
    dress(axes, f"Where the time of a round goes\n(mean of {rounds})", "rank", "time a round")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_major_locator(FixedLocator(range(0, len(ranks), -(-len(ranks) // 12))))
    beside = max(0.6, 0.5 * (3 - len(ranks)))
    axes.set(xlim=(-beside, len(ranks) - 1 + beside), ylim=(0, 1.05 * float(max(bottom.max(), travel.max())) or 1))
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
