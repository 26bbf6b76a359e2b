"""What changes from round to round: accuracy, losses, consensus distance.

Shapes: A agents, E evaluations, M members of what one line stands for, R rounds.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from parse_mpi.studies.recorded import RecordedRun
from parse_mpi.studies.series import Spread, kind_legend, mark_events, running_mean
from parse_mpi.studies.style import Style, count_rounds, dress, legend_below, new_figure, styles

Array = NDArray[np.float64]

WIDTH_IN = 9.5
HEADS = ("unique", "redundant", "synergistic")
LOSS_TITLES = {
    "total": "Total loss: what agents minimise",
    "ensemble": "Cross-entropy of the ensemble",
    "heads": "Cross-entropy of the heads",
    "contrastive": "Contrastive alignment, before its weight",
}
MOST_BANDS = 6  # more of them hide each other
SMOOTHED_FROM = 200  # rounds
LOG_FROM = 20  # times the lowest value of a panel


def accuracy_figure(run: RecordedRun) -> Figure | None:
    """Test accuracy of the ensemble, and of the heads of each type, by kind of agent."""
    if "evaluations/accuracy" not in run.metrics.arrays or not np.isfinite(run.test_accuracy("ensemble")).any():
        return None
    heads = [name for name in HEADS if np.isfinite(run.test_accuracy(name)).any()]
    figure = new_figure(WIDTH_IN, 5.2, run.title())
    if heads:
        panels = figure.subplot_mosaic([["ensemble", name] for name in heads], sharex=True, width_ratios=(2.4, 1))
    else:
        panels = figure.subplot_mosaic([["ensemble"]])
    for name in heads[1:]:
        panels[name].sharey(panels[heads[0]])
    has_bands = len(run.kinds()) <= MOST_BANDS and len(run.metrics["evaluations/round"]) > 1
    extremes = "band: worst to best agent" if has_bands else "bars: worst to best agent in the last evaluation"
    for name, axes in panels.items():
        is_low = name in ("ensemble", *heads[-1:])
        title = f"{name.capitalize()} heads" if name in heads else f"Ensemble, mean per kind of agent\n({extremes})"
        dress(axes, title, "round" if is_low else "", "test accuracy (%)" if name == "ensemble" else "")
        axes.tick_params(labelbottom=is_low)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8 if name == "ensemble" else 4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.4g}")
        _draw_kinds(axes, run, run.test_accuracy(name), has_bands)
        mark_events(axes, run, named=name == "ensemble")
    legend_below(figure, kind_legend(run))
    return figure


def _draw_kinds(axes: Axes, run: RecordedRun, accuracy_EA: Array, has_bands: bool) -> None:
    rounds = run.metrics["evaluations/round"]
    kinds = run.members(rounds)
    look = styles(kinds)
    for k, (kind, members_EA) in enumerate(kinds.items()):
        spread = Spread.of(accuracy_EA, members_EA)
        axes.plot(rounds, spread.mean, **look[kind]._asdict(), marker=_marker(spread.mean), markersize=3.5, label=kind)
        if has_bands:
            axes.fill_between(rounds, spread.low, spread.high, color=look[kind].color, alpha=0.18, linewidth=0)
        elif np.isfinite(spread.mean[-1]):
            _draw_whisker(axes, rounds[-1], spread, look[kind], 26 * (k + 1) / max(len(kinds), 5))
    count_rounds(axes)
    if not has_bands:
        axes.margins(x=0.1)


def _draw_whisker(axes: Axes, x: float, spread: Spread, look: Style, shift_pt: float) -> None:
    """The last mean with its extremes, moved to the right so that kinds don't hide each other."""
    beside = axes.transData + ScaledTranslation(shift_pt / 72, 0, axes.figure.dpi_scale_trans)
    ends = [spread.low[-1], spread.high[-1]]
    for ys, marker in ((ends, ""), (spread.mean[-1:], "o")):
        line = Line2D([x] * len(ys), ys, color=look.color, marker=marker, markersize=3.5, linewidth=1.2)
        line.set(transform=beside, clip_on=False, in_layout=False)
        axes.add_artist(line)
    axes.update_datalim([(x, end) for end in ends])


def losses_figure(run: RecordedRun) -> Figure | None:
    """Every loss term that the method has, mean over the agents of each kind; no line where a kind lacks it."""
    if "rounds/loss" not in run.metrics.arrays:
        return None
    rounds, loss = run.metrics["rounds/round"], run.metrics["rounds/loss"]
    terms = [k for k in range(loss.shape[2]) if np.nan_to_num(loss[:, :, k]).any()]
    if not terms:
        return None
    window = len(rounds) // 40 * 2 + 1 if len(rounds) >= SMOOTHED_FROM else 1
    smoothing = f"; thick: running mean over {window} rounds, thin: every round" if window > 1 else ""
    title = f"{run.title()}\nTraining losses, mean per kind of agent{smoothing}"
    figure, panels = _panels(len(terms), 1.0, title)
    look = styles(run.kinds())
    for k, axes in zip(terms, panels, strict=True):
        term = run.labels("rounds/loss", "term")[k]
        dress(axes, LOSS_TITLES.get(term, term), axes.get_xlabel(), "loss (nats)")
        for kind, members_RA in run.members(rounds).items():
            mean = Spread.of(loss[:, :, k], members_RA).mean
            if (mean > 0).any():
                _draw_loss(axes, rounds, np.where(mean == 0, np.nan, mean), window, kind, look[kind])
        _scale_losses(axes)
        mark_events(axes, run)
        count_rounds(axes)
    legend_below(figure, kind_legend(run))
    return figure


def _draw_loss(axes: Axes, rounds: Array, mean: Array, window: int, kind: str, look: Style) -> None:
    if window > 1:
        axes.plot(rounds, mean, color=look.color, linewidth=0.5, alpha=0.35)
    smooth = running_mean(mean, window)
    axes.plot(rounds, smooth, **look._asdict(), marker=_marker(smooth), markersize=3.5, label=kind)


def _scale_losses(axes: Axes) -> None:
    """A log axis, with plain numbers at 1, 2 and 5, where a loss falls far enough to need one."""
    _, low, _, high = axes.dataLim.extents
    if high > LOG_FROM * low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()


def consensus_figure(run: RecordedRun) -> Figure | None:
    """Consensus distance of every slice: a panel for each part of the network, a colour for each modality."""
    name = "evaluations/consensus_distance"
    if name not in run.metrics.arrays or not run.labels(name, "component"):
        return None
    components, distance = np.array(run.labels(name, "component")), run.metrics[name]
    slices = list(dict.fromkeys(components.tolist()))
    look = styles([*run.modalities, *map(_curve, slices)])
    known = np.isfinite(distance)
    has_pieces = any((known[:, components == s].sum(1) > 1).any() for s in slices)
    pieces = "\nline: mean over the components of the slice's graph, band: lowest to highest" if has_pieces else ""
    what = "Consensus distance: RMS distance of a slice's holders from their mean, relative to the mean's norm"
    parts = list(dict.fromkeys(_part(s) for s in slices))
    figure, panels = _panels(len(parts), 1.4, f"{run.title()}\n{what}{pieces}", sharey=True)
    for k, (part, axes) in enumerate(zip(parts, panels, strict=True)):
        dress(axes, part, axes.get_xlabel(), "" if k % 2 else "consensus distance")
        for s in slices:
            if _part(s) == part:
                _draw_distance(axes, run.metrics["evaluations/round"], distance[:, components == s], s, look[_curve(s)])
        mark_events(axes, run)
    legend_below(figure, [Line2D([], [], **style._asdict(), label=curve) for curve, style in look.items()])
    return figure


def _draw_distance(axes: Axes, rounds: Array, distance_EM: Array, name: str, look: Style) -> None:
    spread = Spread.of(np.where(distance_EM > 0, distance_EM, np.nan))  # a log axis has no place for 0
    axes.plot(rounds, spread.mean, **look._asdict(), marker=_marker(spread.mean), markersize=3.5, label=name)
    axes.fill_between(rounds, spread.low, spread.high, color=look.color, alpha=0.18, linewidth=0)
    if _marker(spread.mean):
        axes.vlines(rounds, spread.low, spread.high, color=look.color)
    axes.set_yscale("log")
    count_rounds(axes)


def _panels(count: int, head_in: float, title: str, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels over the rounds, two in a row, where the lowest of both columns say so."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = new_figure(WIDTH_IN, head_in + 2.5 * rows, title)
    grid = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count][-columns:]:
        axes.set_xlabel("round")
        axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def _marker(values: Array) -> str:
    """A line of one point is not seen."""
    return "o" if np.isfinite(values).sum() == 1 else ""


def _part(slice_name: str) -> str:
    """What its panel is called: slices of every modality that are the same part of the network share one."""
    part, bracket, _ = slice_name.partition("[")
    return f"{part}[modality]" if bracket else "Slices across modalities"


def _curve(slice_name: str) -> str:
    """What its line is called: the modality, the family or the kind of agents that it belongs to, or its own name."""
    _, bracket, modality = slice_name.partition("[")
    return modality.rstrip("]") if bracket else slice_name
