"""DIR/scaling.md and DIR/*.png: what a scaling study found, from its scaling.h5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from parse_mpi.errors import ParseMpiError, counted
from parse_mpi.run.summary import size_text
from parse_mpi.scaling.costmodel import PARTS, CostModel, HeldOut, fit, hold_out, samples_of
from parse_mpi.scaling.scalingfile import Scaling, load_scaling
from parse_mpi.storage.write import storage_errors, write_text
from parse_mpi.studies.document import UNKNOWN, Table, to_markdown
from parse_mpi.studies.report import DOTS_PER_INCH
from parse_mpi.studies.scalingpoints import PointSummary, summaries

RESULT = "scaling.h5"
SIZE = ("ranks", "nodes", "agents")
UNITS = {
    "rounds": (1e3, "ms a round"),
    "work": (1e12, "ps for a sample and parameter"),
    "moved_bytes": (1e9, "ns a byte"),
    "messages_within": (1e6, "µs a message within a node"),
    "bytes_within": (1e9, "ns a byte within a node"),
    "messages_between": (1e6, "µs a message between nodes"),
    "bytes_between": (1e9, "ns a byte between nodes"),
}


def write_scaling_report(study_dir: Path) -> list[Path]:
    """Write tables and pictures of a study, replacing those of an earlier call, and return the files.

    Raises StorageError where there is no scaling.h5, ParseMpiError without matplotlib.
    """
    try:
        from parse_mpi.studies.scalingview import scaling_figures
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ParseMpiError("the pictures of a study need matplotlib: pip install 'parse-mpi[report]'") from error
    scaling = load_scaling(study_dir / RESULT)
    pictures = dict(scaling_figures(scaling, summaries(scaling)))
    shown = ["### Pictures", "", *(f"![{name}]({name}.png)\n" for name in pictures)] if pictures else []
    text = "\n".join([f"# {scaling.name}", "", *_origin(scaling), *map(to_markdown, scaling_tables(scaling)), *shown])
    write_text(study_dir / "scaling.md", text)
    with storage_errors(study_dir):
        for name, figure in pictures.items():
            figure.savefig(study_dir / f"{name}.png", dpi=DOTS_PER_INCH)
    return [study_dir / "scaling.md", *(study_dir / f"{name}.png" for name in pictures)]


def scaling_tables(scaling: Scaling) -> Iterator[Table]:
    """Curve by curve time, phases and traffic; then the cost model with its errors, and what failed."""
    for curve, points in summaries(scaling).items():
        yield _time_table(scaling, curve, points)
        yield _phase_table(curve, points)
    if samples := samples_of(scaling):
        yield _constants_table(fit(samples), len(samples))
        yield _error_table(hold_out(samples), fit(samples), scaling)
    if failed := [[*map(str, launch.point), launch.reason] for launch in scaling.launches if launch.status == "failed"]:
        yield Table("Points that failed", ["curve", *SIZE, "reason"], failed, frozenset({"curve", "reason"}))


def _time_table(scaling: Scaling, curve: str, points: Sequence[PointSummary]) -> Table:
    kind = scaling.kinds[curve]
    columns = [
        *SIZE, "launches", "ms a round", "quartiles", "speed-up", "efficiency", "ms an agent", "sent a round",
        "busiest rank", "messages", "hidden", "peak memory",
    ]  # fmt: skip
    rows = [
        [
            *_size(point),
            str(point.launches),
            _ms(point.round_s) + ("*" if point.crowded else ""),
            f"{_ms(point.low_s)} to {_ms(point.high_s)}",
            f"{point.speed_up:.2f}",
            f"{point.efficiency:.0%}",
            f"{1e3 * point.round_s * point.ranks / point.agents:.3f}",
            size_text(point.round_bytes),
            size_text(point.busiest_bytes),
            f"{point.messages:.3g}",
            f"{point.hidden:.0%}" if np.isfinite(point.hidden) else UNKNOWN,
            size_text(point.peak_bytes),
        ]
        for point in points
    ]
    note = (
        "A round of the slowest rank without evaluation, records and checkpoints: median and quartiles over the rounds "
        "of all launches. Speed-up: agents that learn a round in the same time, against the first row; efficiency: the "
        "share of the ideal. Busiest rank, messages: what the rank that sends most sends a round. Hidden: share of the "
        "rows' travelling time in which no rank waited for them. Peak memory: of the largest rank."
    )
    if any(point.crowded for point in points):
        note += " *: more compute threads than cores, so that ranks take turns."
    return Table(f"{curve} ({kind} scaling): time, traffic and memory", columns, rows, note=note)


def _phase_table(curve: str, points: Sequence[PointSummary]) -> Table:
    names = list(points[0].phase_s)
    rows = [[*_size(point), *(_ms(point.phase_s[name]) for name in names)] for point in points]
    note = (
        "Milliseconds a round, mean over rounds and ranks; the rare ones (evaluate, checkpoint, record) spread evenly."
    )
    return Table(f"{curve}: where the time goes", [*SIZE, *(name.replace("_", " ") for name in names)], rows, note=note)


def _constants_table(model: CostModel, points: int) -> Table:
    rows = []
    for part, features in PARTS.items():
        for name in features:
            factor, unit = UNITS[name]
            is_known = model.ranges.get(name, (0.0, 0.0))[1] > 0
            span = " to ".join(f"{amount:.3g}" for amount in model.ranges[name]) if is_known else UNKNOWN
            rows.append([part, unit, f"{factor * model.constants[part, name]:.4g}" if is_known else UNKNOWN, span])
    note = (
        f"Fitted to {counted(points, 'size')}. 0: the fit needs no such term. Fitted range: amounts a round of the "
        "busiest rank; beyond 4 times that a prediction is called extrapolation."
    )
    return Table("Cost model", ["part", "unit", "constant", "fitted range"], rows, frozenset({"part", "unit"}), note)


def _error_table(held: Sequence[HeldOut], model: CostModel, scaling: Scaling) -> Table:
    fitted = {sample.key: model.round_s(sample.demand) for sample in samples_of(scaling)}
    rows = [
        [
            *map(str, point.key),
            _ms(point.measured_s),
            _ms(fitted[point.key]),
            f"{fitted[point.key] / point.measured_s - 1:+.0%}",
            _ms(point.predicted_s) if np.isfinite(point.predicted_s) else UNKNOWN,
            f"{point.error:+.0%}" if np.isfinite(point.error) else UNKNOWN,
        ]
        for point in held
    ]
    columns = [*SIZE, "measured", "fitted", "error", "held out", "error held out"]
    note = f"Milliseconds a round. Held out: each size predicted from all others; {error_text(held)}."
    return Table("Cost model against measurements", columns, rows, note=note)


def error_text(held: Sequence[HeldOut]) -> str:
    """How good predictions of points are that the model has not seen."""
    errors = np.abs([point.error for point in held])
    known = errors[np.isfinite(errors)]
    if not len(known):
        return "no size could be held out"
    worst = f"median error {np.median(known):.0%}, largest {known.max():.0%} ({counted(len(known), 'size')})"
    unknown = len(errors) - len(known)
    return worst + (f"; {counted(unknown, 'size')} alone of a kind" if unknown else "")


def _size(point: PointSummary) -> list[str]:
    return [str(point.ranks), str(point.nodes), f"{point.agents:,}"]


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def _origin(scaling: Scaling) -> Iterable[str]:
    """When, how, where and from what."""
    for key in ("time", "command", "commit", "machine"):
        if key in scaling.provenance:
            yield f"- {key}: {scaling.provenance[key]}"
    hosts = {
        (str(host), int(cores))
        for launch in scaling.launches
        if launch.result is not None
        for host, cores in zip(launch.result.host, launch.result.host_cores, strict=True)
    }
    told = [f"{host} ({counted(cores, 'core')})" for host, cores in sorted(hosts)]
    yield f"- hosts: {', '.join(told)}"
    yield f"- job: {scaling.job}, train.order: {scaling.order}"
    finished = sum(launch.result is not None for launch in scaling.launches)
    yield f"- launches: {finished} of {len(scaling.launches)} measured, warm-up of {counted(scaling.warm_up, 'round')}"
    yield ""
