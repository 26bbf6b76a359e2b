"""`parse-mpi export`: the metrics of a run as CSV files, a row for each observation, for pandas, R and spreadsheets.

RFC 4180, UTF-8, numbers that read back to the last bit. What HDF5 marks as unknown (nan, in integers -1) is an empty
cell. Shapes: R rounds, E evaluations, A agents, S slices, K ranks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from parse_mpi.storage.layout import Array
from parse_mpi.storage.write import storage_errors
from parse_mpi.studies.recorded import RecordedRun

Columns: TypeAlias = Mapping[str, Array]
Axes: TypeAlias = Mapping[str, Sequence[str] | Array]

BLOCK_ROWS = 1 << 16  # turned into Python's numbers at a time


def export_csv(run: Path, folder: Path | None = None) -> list[Path]:
    """Write a file for each table that the metrics of a run, finished or under way, have something for; returns them.

    folder: RUN/csv by default; made if it is not there, and what an earlier export wrote is replaced. Raises
    StorageError where there is no run, or nothing recorded yet, or the folder can't be written.
    """
    recorded = RecordedRun.read(run)
    folder = folder or Path(run) / "csv"
    written = []
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, (source, columns_of) in TABLES.items():
            if source in recorded.metrics.arrays:
                written.append(folder / f"{name}.csv")
                with open(written[-1], "w", encoding="utf-8", newline="") as file:
                    write_columns(file, columns_of(recorded))
    return written


def write_columns(file: TextIO, columns: Columns) -> None:
    """A header and a row for each entry, in C order, of columns of one shape."""
    writer = csv.writer(file)
    writer.writerow(columns)
    size = next(iter(columns.values())).size
    for start in range(0, size, BLOCK_ROWS):
        block = (_cells(column.flat[start : start + BLOCK_ROWS]) for column in columns.values())
        writer.writerows(zip(*block, strict=True))


def _cells(column: Array) -> list[Any]:
    cells: list[Any] = column.tolist()
    if column.dtype.kind not in "fi":
        return cells
    known = ~np.isnan(column) if column.dtype.kind == "f" else column != -1
    return [cell if is_known else "" for cell, is_known in zip(cells, known.tolist(), strict=True)]


# -- the tables ------------------------------------------------------------------------------------------------------


def _agents(run: RecordedRun) -> Columns:
    return {
        "agent": run.metrics["agents/id"],
        "kind": run.metrics["agents/kind"],
        "samples": run.metrics["agents/class_histogram"].sum(1),
    }


def _rounds(run: RecordedRun) -> Columns:
    axes: Axes = {"round": run.metrics["rounds/round"], "agent": _ids(run), "term": run.labels("rounds/loss", "term")}
    return _tidy(axes, loss=run.metrics["rounds/loss"])


def _evaluations(run: RecordedRun) -> Columns:
    name, rounds = "evaluations/accuracy", run.metrics["evaluations/round"]
    accuracy = run.metrics[name]
    labels = {key: run.labels(name, key) for key in ("split", "weighting", "prediction")}
    kinds = np.broadcast_to(_kinds(run, rounds)[:, :, None, None, None], accuracy.shape)
    return _tidy({"round": rounds, "agent": _ids(run), **labels}, kind=kinds, accuracy=accuracy)


def _consensus(run: RecordedRun) -> Columns:
    name = "evaluations/consensus_distance"
    slices, distances = run.labels(name, "component"), run.metrics[name]
    component = np.broadcast_to([slices[:k].count(slices[k]) for k in range(len(slices))], distances.shape)
    axes: Axes = {"round": run.metrics["evaluations/round"], "slice": slices}
    return _tidy(axes, component=component, consensus_distance=distances)


def _bytes(run: RecordedRun) -> Columns:
    values = {key: run.metrics[f"rounds/{key}"] for key in ("payload_bytes", "waiting_bytes")}
    return _tidy({"round": run.metrics["rounds/round"], "slice": run.labels("rounds/payload_bytes", "slice")}, **values)


def _ranks(run: RecordedRun) -> Columns:
    seconds, sent = run.metrics["ranks/seconds"], run.metrics["ranks/sent_bytes"]
    phases = {f"{phase}_seconds": seconds[:, :, k] for k, phase in enumerate(run.labels("ranks/seconds", "phase"))}
    travel = run.metrics["ranks/travel_seconds"]
    total = np.where((sent < 0).any(2), -1, sent.sum(2))
    axes = {"round": run.metrics["ranks/round"], "rank": np.arange(seconds.shape[1])}
    return _tidy(axes, **phases, travel_seconds=travel, sent_bytes=total)


def _links(run: RecordedRun) -> Columns:
    names = np.array(run.labels("rounds/payload_bytes", "slice"))
    columns = {key: run.metrics[f"links/{key}"] for key in ("last_round", "source", "destination", "slice", "bytes")}
    return {**columns, "slice": names[columns["slice"]]}


def _final(run: RecordedRun) -> Columns:
    axes: Axes = {"agent": _ids(run), "split": run.labels("final/macro_f1", "split")}
    values = {key: run.metrics[f"final/{key}"] for key in ("macro_f1", "calibration_error")}
    done = _final_round(run)
    per_agent = {"kind": _kinds(run, done)[0], "gradient_steps": run.metrics["final/gradient_steps"]}
    shape = values["macro_f1"].shape
    told = {key: np.broadcast_to(x[:, None], shape) for key, x in per_agent.items()}
    return {"round": np.broadcast_to(done, shape), **_tidy(axes, **told, **values)}


def _retrieval(run: RecordedRun) -> Columns:
    name = "final/retrieval"
    pairs = ("query_agent", "gallery_agent", "query_modality", "gallery_modality")
    of_pair = {key: np.asarray(run.metrics.attributes[name][key]) for key in pairs}
    scores = {measure: run.metrics[name][:, k] for k, measure in enumerate(run.labels(name, "measure"))}
    return {"round": np.broadcast_to(_final_round(run), len(run.metrics[name])), **of_pair, **scores}


# File -> the data set without which there is nothing to write, and what gives its columns.
TABLES: dict[str, tuple[str, Callable[[RecordedRun], Columns]]] = {
    "agents": ("agents/id", _agents),
    "rounds": ("rounds/loss", _rounds),
    "evaluations": ("evaluations/accuracy", _evaluations),
    "consensus": ("evaluations/consensus_distance", _consensus),
    "bytes": ("rounds/payload_bytes", _bytes),
    "ranks": ("ranks/seconds", _ranks),
    "links": ("links/bytes", _links),
    "final": ("final/macro_f1", _final),
    "retrieval": ("final/retrieval", _retrieval),
}


def _tidy(axes: Axes, **values: Array) -> dict[str, Array]:
    """A row for each entry of arrays of one shape: its place on every axis by name, then its values.

    Places are views that repeat the entries of an axis: written out they would take gigabytes.
    """
    places = np.meshgrid(*map(np.asarray, axes.values()), indexing="ij", copy=False)
    return {**dict(zip(axes, places, strict=True)), **values}


def _final_round(run: RecordedRun) -> NDArray[np.int64]:
    """After which round [1] the agents were looked at closely: the last, unless the run went on since."""
    return np.array([run.metrics.attributes["final"]["round"]])


def _ids(run: RecordedRun) -> NDArray[np.int64]:
    return np.arange(len(run.agents))


def _kinds(run: RecordedRun, rounds: NDArray[np.int64]) -> NDArray[np.str_]:
    """What each agent held in each of these rounds [R, A]; "" while it was away."""
    eras = run.planned_eras
    era_R = np.searchsorted([era.start for era in eras], rounds - 1, side="right") - 1
    return np.array([[agent.kind for agent in era.agents] for era in eras])[era_R]
