"""The table at the end of a run, made from its metrics: accuracy per kind of agent, bytes, where the time went."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from parse_mpi.errors import counted
from parse_mpi.storage.metrics import Metrics

COLUMNS = ("ensemble", "unique", "redundant", "synergistic")


@dataclass(frozen=True)
class Evaluation:
    """Accuracy [A, P] of all agents on one split in one round (weighting `global`), with labels for both axes.

    kinds: what the agents held in that round, "" for those that were away.
    """

    round_index: int
    kinds: NDArray[np.str_]
    predictions: list[str]
    accuracy: NDArray[np.float64]

    def of(self, kind: str | None, prediction: str) -> NDArray[np.float64]:
        """Accuracy of every agent of a kind (None: of all agents) that was there and has this prediction."""
        column = self.accuracy[:, self.predictions.index(prediction)]
        return column[~np.isnan(column) & (kind is None or self.kinds == kind)]

    def count(self, kind: str | None) -> int:
        """How many agents of a kind (None: of any) took part."""
        return int((self.kinds != "" if kind is None else self.kinds == kind).sum())


def eras_of(metrics: Metrics, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """In which era each round lies, as an index into the table `eras`; the first round is 1."""
    return np.searchsorted(metrics["eras/start"], rounds - 1, side="right") - 1


def evaluation(metrics: Metrics, row: int, split: str) -> Evaluation:
    """One row of the evaluations."""
    labels = metrics.attributes["evaluations/accuracy"]
    splits, predictions = _labels(labels["split"]), _labels(labels["prediction"])
    accuracy = metrics["evaluations/accuracy"][row, :, splits.index(split), 0, :]
    done = metrics["evaluations/round"][row]
    return Evaluation(int(done), metrics["eras/kind"][eras_of(metrics, done)], predictions, accuracy)


def best_row(metrics: Metrics) -> int | None:
    """The evaluation with the highest mean ensemble accuracy on validation, the earliest of equals; None without it."""
    rows = range(len(metrics["evaluations/round"]))
    found = [evaluation(metrics, row, "validation").of(None, "ensemble") for row in rows]
    return None if any(len(values) == 0 for values in found) else int(np.argmax([values.mean() for values in found]))


def told_split(metrics: Metrics) -> str:
    """The split that results are told of: test, or validation where nobody was evaluated on test samples."""
    has_test = len(evaluation(metrics, -1, "test").of(None, "ensemble")) > 0
    return "test" if has_test else "validation"


def accuracy_table(metrics: Metrics) -> Table:
    """Kind x (ensemble, unique, redundant, synergistic), mean and worst agent, in the last round."""
    split, best = told_split(metrics), best_row(metrics)
    last = evaluation(metrics, -1, split)
    away = len(last.kinds) - last.count(None)
    table = Table(
        title=f"{split.capitalize()} accuracy after round {last.round_index}: mean, worst agent", title_justify="left"
    )
    for name, justify in (("agents", "left"), ("n", "right"), *((c, "right") for c in COLUMNS)):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for kind in [*filter(None, dict.fromkeys(last.kinds.tolist())), None]:
        cells = [_mean_and_worst(last.of(kind, column)) for column in COLUMNS]
        table.add_row(kind or "all", str(last.count(kind)), *cells)
    notes = [f"away in this round: {counted(away, 'agent')}"] if away else []
    if best is not None:
        chosen = evaluation(metrics, best, split)
        mean = f"{chosen.of(None, 'ensemble').mean():.3f}"
        notes.append(f"best round on validation: {chosen.round_index}, there the ensemble has {mean} (all, mean)")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def final_lines(metrics: Metrics) -> Iterator[str]:
    """Of a run at its end: what the close look at the agents showed, means over all; that of an earlier end is old."""
    if "final/macro_f1" not in metrics.arrays or metrics.attributes["final"]["round"] != metrics["rounds/round"][-1]:
        return
    split = told_split(metrics)
    column = _labels(metrics.attributes["final/macro_f1"]["split"]).index(split)
    f1, error = (metrics[f"final/{name}"][:, column] for name in ("macro_f1", "calibration_error"))
    if len(there := np.flatnonzero(~np.isnan(f1))):
        shown = f"macro-F1 {f1[there].mean():.3f}, calibration error {error[there].mean():.3f}"
        yield f"ensemble on {split}: {shown} (all, mean)"
    if "final/retrieval" in metrics.arrays:
        names = _labels(metrics.attributes["final/retrieval"]["measure"])
        means = zip(names, metrics["final/retrieval"].mean(0), strict=True)
        pairs = counted(len(metrics["final/retrieval"]), "pair")
        yield f"retrieval across modalities: {', '.join(f'{n} {mean:.3f}' for n, mean in means)} (mean of {pairs})"


def cost_lines(metrics: Metrics) -> Iterator[str]:
    """Bytes between agents and between ranks, and the share of each phase of the slowest rank."""
    rounds = len(metrics["rounds/round"])
    payload, sent = metrics["rounds/payload_bytes"].sum(), np.maximum(metrics["ranks/sent_bytes"], 0).sum()
    yield (
        f"bytes: {size_text(payload)} between agents ({size_text(payload / rounds)} a round), "
        f"{size_text(sent)} of it between ranks"
    )
    seconds = np.nansum(metrics["ranks/seconds"], axis=0)  # [rank, phase]
    if "ending/seconds" in metrics.arrays:
        seconds[: len(metrics["ending/seconds"])] += metrics["ending/seconds"]
    slowest = seconds[seconds.sum(1).argmax()]
    phases = _labels(metrics.attributes["ranks/seconds"]["phase"])
    split = ", ".join(
        f"{name.replace('_', ' ')} {s / slowest.sum():.0%}" for name, s in zip(phases, slowest, strict=True)
    )
    pace = f"{1e3 * slowest.sum() / rounds:.1f} ms a round"
    yield f"time: {slowest.sum():.1f} s in {counted(rounds, 'round')}, {pace}: {split}"


def width_lines(metrics: Metrics) -> Iterator[str]:
    """Of jobs with adaptive widths: positions of each slice after the last round, mean over a modality's holders."""
    if "evaluations/widths" not in metrics.arrays:
        return
    labels, widths = metrics.attributes["evaluations/widths"], metrics["evaluations/widths"][-1]
    parts = []
    for k, m in enumerate(_labels(labels["modality"])):
        held = widths[~np.isnan(widths[:, k, 0]), k]
        if len(held):
            shown = zip(held.mean(0), _labels(labels["type"]), strict=True)
            parts.append(f"{m} " + ", ".join(f"{width:.3g} {t}" for width, t in shown))
    yield f"slice widths: {'; '.join(parts)}"


def size_text(size_bytes: float) -> str:
    """Bytes with a decimal unit: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def _mean_and_worst(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f} {values.min():.3f}" if len(values) else "–"


def _labels(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple, np.ndarray)) else [str(value)]
