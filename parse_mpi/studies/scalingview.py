"""Pictures of a scaling study: time, efficiency and memory along its curves, where time goes, and the cost model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, NullLocator, PercentFormatter
from numpy.typing import NDArray

from parse_mpi.scaling.costmodel import fit, hold_out, samples_of
from parse_mpi.scaling.scalingfile import EVERY_ROUND, Scaling
from parse_mpi.studies.costs import PHASE_COLOURS
from parse_mpi.studies.scalingpoints import PointSummary
from parse_mpi.studies.style import PALETTE, dress, new_figure

Curves = Mapping[str, Sequence[PointSummary]]


def scaling_figures(scaling: Scaling, curves: Curves) -> Iterator[tuple[str, Figure]]:
    """Name of a file and figure: one for each curve, one for the model."""
    for curve, points in curves.items():
        yield curve, _curve_figure(scaling, curve, points)
    if len(samples_of(scaling)) > 1:
        yield "costmodel", _model_figure(scaling)


def _curve_figure(scaling: Scaling, curve: str, points: Sequence[PointSummary]) -> Figure:
    kind = scaling.kinds[curve]
    along = "agents on one rank" if kind == "group" else "ranks"
    x = np.array([point.agents if kind == "group" else point.ranks for point in points], float)
    stars = " (*: more threads than cores)" if any(point.crowded for point in points) else ""
    figure = new_figure(11.0, 4.0, f"{scaling.name}, {curve}: {kind} scaling of {scaling.job}{stars}")
    time, share, phases = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    low, middle, high = (np.array([getattr(p, name) for p in points]) for name in ("low_s", "round_s", "high_s"))
    time.errorbar(x, middle, (middle - low, high - middle), marker="o", color=PALETTE[0], capsize=3, label="measured")
    time.plot(x, _ideal(kind, points), color=PALETTE[7], linestyle="--", label="ideal")
    time.set_yscale("log")
    _count_seconds(time.yaxis, low)
    dress(time, "A round: median and quartiles", along, "time")
    time.legend(fontsize=8, frameon=False)
    share.plot(x, [point.efficiency for point in points], marker="o", color=PALETTE[0], label="efficiency")
    peak = share.twinx()
    peak.plot(x, [point.peak_bytes for point in points], marker="s", color=PALETTE[1], label="peak memory")
    peak.yaxis.set_major_formatter(EngFormatter("B"))
    peak.set_ylim(0, 1.1 * max(point.peak_bytes for point in points))
    peak.tick_params(labelsize=8)
    dress(share, "Efficiency, and memory of the largest rank", along, "")
    share.set_ylim(0, 1.1 * max(1.0, *(point.efficiency for point in points)))
    share.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles = [*share.get_legend_handles_labels()[0], *peak.get_legend_handles_labels()[0]]
    share.legend(handles=handles, fontsize=8, frameon=False, loc="lower left")
    for axes in (time, share):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(x.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{value:,.0f}" for value in x])
    _draw_phases(phases, points, along, kind == "group")
    return figure


def _draw_phases(axes: Axes, points: Sequence[PointSummary], along: str, per_agent: bool) -> None:
    """A bar for each point, of the phases that every round has; per agent where these are what grows."""
    scale = np.array([1.0 / point.agents if per_agent else 1.0 for point in points])
    bottom = np.zeros(len(points))
    for k, name in enumerate(EVERY_ROUND):
        height = scale * np.array([point.phase_s[name] for point in points])
        label = name.replace("_", " ")
        axes.bar(range(len(points)), height, 0.7, bottom, label=label, color=PHASE_COLOURS[k % len(PHASE_COLOURS)])
        bottom += height
    sizes = [point.agents if per_agent else point.ranks for point in points]
    axes.set_xticks(range(len(points)), [f"{n:,}" + "*" * p.crowded for n, p in zip(sizes, points, strict=True)])
    dress(axes, "Where it goes, mean over ranks", along, "time a round" + (" and agent" if per_agent else ""))
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _model_figure(scaling: Scaling) -> Figure:
    """Predicted against measured: with all points in the fit, and each from all others."""
    samples = samples_of(scaling)
    model, held = fit(samples), hold_out(samples)
    figure = new_figure(5.0, 4.5, f"{scaling.name}: cost model")
    axes = figure.subplots()
    measured = np.array([sample.round_s for sample in samples])
    axes.plot(measured, [model.round_s(s.demand) for s in samples], "o", color=PALETTE[0], label="fitted to all points")
    axes.plot(measured, [h.predicted_s for h in held], "x", color=PALETTE[1], label="each from all others")
    ends = [0.8 * measured.min(), 1.25 * measured.max()]
    axes.plot(ends, ends, color=PALETTE[7], linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        _count_seconds(axis, measured)
    dress(axes, "A round", "measured", "predicted")
    axes.legend(fontsize=8, frameon=False)
    return figure


def _count_seconds(axis: Axis, values: NDArray[np.float64]) -> None:
    """Seconds along a logarithmic axis, also between powers of ten where there is at most one of these."""
    axis.set_major_formatter(EngFormatter("s"))
    axis.set_minor_formatter(EngFormatter("s") if values.max() < 10 * values.min() else NullFormatter())
    axis.set_tick_params(which="minor", labelsize=7)


def _ideal(kind: str, points: Sequence[PointSummary]) -> list[float]:
    """What a round would take if the first point scaled perfectly."""
    first = points[0]
    if kind == "group":
        return [first.round_s * point.agents / first.agents for point in points]
    return [first.round_s * point.agents / first.agents * first.ranks / point.ranks for point in points]
