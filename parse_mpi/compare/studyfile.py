"""study.h5: all that a study measured, in one file; docs/file-formats.md lists the data sets. Needs no torch.

Shapes: A agents of a cell, E evaluations, K kinds of agents, P predictions, n samples of the larger split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parse_mpi.compare.choices import Choice, Pair, Tried
from parse_mpi.compare.schema import Compare, Settings
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.storage.layout import Array, Attribute
from parse_mpi.storage.read import Content
from parse_mpi.storage.results import read_result
from parse_mpi.storage.write import write_sealed_hdf5

FORMAT, FORMAT_VERSION = "parse-mpi study", 1
SPLITS = ("validation", "test")
ENSEMBLE = "ensemble"

Status = Literal["finished", "failed", "missing"]


@dataclass(frozen=True)
class Curve:
    """All evaluations of a cell.

    round [E]. payload_bytes [E]: sent between agents up to that round. kind [K]: modalities joined by +, `all` last.
    accuracy [E, K, split, weighting]: of the ensemble, mean over the agents of a kind; nan where there is none.
    """

    round: NDArray[np.int64]
    payload_bytes: NDArray[np.int64]
    kind: tuple[str, ...]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Final:
    """What was looked at closely after the last round (table `final` of a run).

    predicted int16 [A, split, n] and label int16 [split, n]: classes, -1 beyond the samples of a split or not known.
    confidence float32 [A, split, n]: probability of the predicted class. sample int64 [split, n]: row in the data set.
    macro_f1, calibration_error float64 [A, split]. retrieval float64 [pair, measure], with names for both axes.
    """

    predicted: NDArray[np.int16]
    confidence: NDArray[np.float32]
    label: NDArray[np.int16]
    sample: NDArray[np.int64]
    macro_f1: NDArray[np.float64]
    calibration_error: NDArray[np.float64]
    retrieval: NDArray[np.float64]
    measure: tuple[str, ...]
    pair: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Result:
    """What a finished cell measured.

    kind [A]: what each agent held at the end, "" for those that were away. prediction [P]: names. best, last
    [A, split, weighting, P]: accuracy in best_round, which has the highest mean ensemble accuracy on validation, and in
    last_round. gradient_steps [A]: local steps of each agent. payload_bytes: between agents, over the whole run.
    seconds: of training, on the slowest rank.
    """

    kind: tuple[str, ...]
    prediction: tuple[str, ...]
    curve: Curve
    best_round: int
    last_round: int
    best: NDArray[np.float64]
    last: NDArray[np.float64]
    gradient_steps: NDArray[np.int64]
    payload_bytes: int
    seconds: float
    ranks: int
    final: Final | None

    def accuracy(
        self, prediction: str = ENSEMBLE, *, row: Literal["best", "last"] = "last", split: str = "test",
        weighting: str = "global",
    ) -> NDArray[np.float64]:  # fmt: skip
        """Accuracy of every agent [A]; nan for those that were away or lack the prediction."""
        table = self.best if row == "best" else self.last
        return table[:, SPLITS.index(split), WEIGHTINGS.index(weighting), self.prediction.index(prediction)]


@dataclass(frozen=True)
class Cell:
    """One cell of a study. levels: axis -> level, without the seed. reason: why a cell has no result."""

    name: str
    levels: dict[str, str]
    seed: int
    job_digest: str
    rounds: int
    status: Status
    reason: str = ""
    result: Result | None = None


@dataclass(frozen=True)
class Study:
    """A whole study. cells: in the order of the axes, then seeds. tuning: (data, method) -> what was tried and chosen.

    provenance: time, command, commit, machine, and the text of the study file.
    """

    name: str
    axes: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    compare: Compare | None
    cells: tuple[Cell, ...]
    tuning: dict[Pair, Choice] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[Pair, Settings]:
        """(data, method) -> the settings that tuning chose."""
        return {pair: choice.settings for pair, choice in self.tuning.items()}

    def select(self, /, **levels: str) -> list[Cell]:
        """The finished cells at these levels of axes."""
        wanted = levels.items()
        return [cell for cell in self.cells if cell.result is not None and wanted <= cell.levels.items()]


def write_study(path: Path, study: Study) -> None:
    """Write study.h5, replacing it in one step. Raises StorageError."""
    arrays: dict[str, Array] = dict(_flat(study))
    attributes: dict[str, dict[str, Attribute]] = {"": _root(study)}
    for index, cell in enumerate(study.cells):
        if cell.result is not None:
            group = _group(index)
            for name, values, own in _arrays(cell.result):
                arrays[f"{group}/{name}"] = values
                attributes[f"{group}/{name}"] = own
            attributes[group] = {"name": cell.name, **_scalars(cell.result)}
    write_sealed_hdf5(path, arrays, attributes)


def load_study(path: Path) -> Study:
    """Read study.h5. Raises StorageError where it is not there, damaged, or of a newer version."""
    return read_result(path, FORMAT, FORMAT_VERSION, "compare", _study)


# -- writing ---------------------------------------------------------------------------------------------------------


def _root(study: Study) -> dict[str, Attribute]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": study.name,
        "axes": list(study.axes),
        "split": list(SPLITS),
        "weighting": list(WEIGHTINGS),
        "compare": study.compare.model_dump_json() if study.compare else "",
        "provenance": json.dumps(study.provenance),
    }


def _flat(study: Study) -> Iterator[tuple[str, Array]]:
    """A data set for everything that is one value for each cell, axis, level or configuration."""
    cells = study.cells
    for axis, levels in study.axes.items():
        yield f"axes/{axis}", np.array(levels, np.str_)
        yield f"levels/{axis}", np.array([cell.levels[axis] for cell in cells], np.str_)
    yield "seeds", np.array(study.seeds, np.int64)
    for name in ("name", "job_digest", "status", "reason"):
        yield f"cells/{name}", np.array([getattr(cell, name) for cell in cells], np.str_)
    for name in ("seed", "rounds"):
        yield f"cells/{name}", np.array([getattr(cell, name) for cell in cells], np.int64)
    rows = [(pair, choice, k) for pair, choice in study.tuning.items() for k in range(len(choice.tried))]
    if rows:
        yield "tuning/data", np.array([data for (data, _), _, _ in rows])
        yield "tuning/method", np.array([method for (_, method), _, _ in rows])
        yield "tuning/settings", np.array([json.dumps(choice.tried[k].settings) for _, choice, k in rows])
        yield "tuning/validation", np.array([choice.tried[k].scores for _, choice, k in rows], np.float64)
        yield "tuning/is_chosen", np.array([choice.chosen == k for _, choice, k in rows])
        yield "tuning/key", np.array([choice.key for _, choice, _ in rows])


def _scalars(result: Result) -> dict[str, Attribute]:
    return {
        "best_round": result.best_round,
        "last_round": result.last_round,
        "payload_bytes": result.payload_bytes,
        "seconds": result.seconds,
        "ranks": result.ranks,
    }


def _arrays(result: Result) -> Iterator[tuple[str, Array, dict[str, Attribute]]]:
    """Name inside the group of a cell, values, and what the axes mean."""
    curve, final = result.curve, result.final
    yield "kind", np.array(result.kind, np.str_), {}
    yield "gradient_steps", result.gradient_steps, {}
    table: dict[str, Attribute] = {
        "dimensions": ["agent", "split", "weighting", "prediction"], "prediction": list(result.prediction)
    }  # fmt: skip
    yield "best", result.best, table
    yield "last", result.last, table
    yield "curve/round", curve.round, {}
    yield "curve/payload_bytes", curve.payload_bytes, {}
    yield "curve/accuracy", curve.accuracy, {
        "dimensions": ["evaluation", "kind", "split", "weighting"], "kind": list(curve.kind)
    }  # fmt: skip
    if final is not None:
        for name in ("predicted", "confidence"):
            yield f"final/{name}", getattr(final, name), {"dimensions": ["agent", "split", "sample"]}
        for name in ("label", "sample"):
            yield f"final/{name}", getattr(final, name), {"dimensions": ["split", "sample"]}
        for name in ("macro_f1", "calibration_error"):
            yield f"final/{name}", getattr(final, name), {"dimensions": ["agent", "split"]}
        pairs: list[str] = [json.dumps(pair) for pair in final.pair]
        yield "final/retrieval", final.retrieval, {
            "dimensions": ["pair", "measure"], "measure": list(final.measure), "pair": pairs
        }  # fmt: skip


def _group(index: int) -> str:
    return f"results/{index:05d}"


# -- reading ---------------------------------------------------------------------------------------------------------


def _study(content: Content) -> Study:
    root, arrays = content.attributes[""], content.arrays
    axes = {axis: tuple(arrays[f"axes/{axis}"].tolist()) for axis in _names(root["axes"])}
    return Study(
        name=str(root["name"]),
        axes=axes,
        seeds=tuple(arrays["seeds"].tolist()),
        compare=Compare.model_validate_json(str(root["compare"])) if root["compare"] else None,
        cells=tuple(_cell(content, axes, index) for index in range(len(arrays["cells/name"]))),
        tuning=_tuning(arrays),
        provenance=json.loads(str(root["provenance"])),
    )


def _cell(content: Content, axes: Mapping[str, Sequence[str]], index: int) -> Cell:
    arrays = content.arrays
    names = ("name", "job_digest", "status", "reason", "seed", "rounds")
    values: dict[str, Any] = {name: arrays[f"cells/{name}"][index].item() for name in names}
    levels = {axis: str(arrays[f"levels/{axis}"][index]) for axis in axes}
    return Cell(levels=levels, result=_result(content, _group(index)), **values)


def _result(content: Content, group: str) -> Result | None:
    own: Any = content.attributes.get(group)
    if own is None:
        return None
    curve = Curve(
        round=content.arrays[f"{group}/curve/round"],
        payload_bytes=content.arrays[f"{group}/curve/payload_bytes"],
        kind=_axis(content, f"{group}/curve/accuracy", "kind"),
        accuracy=content.arrays[f"{group}/curve/accuracy"],
    )
    return Result(
        kind=tuple(content.arrays[f"{group}/kind"].tolist()),
        prediction=_axis(content, f"{group}/last", "prediction"),
        curve=curve,
        best=content.arrays[f"{group}/best"],
        last=content.arrays[f"{group}/last"],
        gradient_steps=content.arrays[f"{group}/gradient_steps"],
        final=_final(content, f"{group}/final"),
        **{name: own[name] for name in ("best_round", "last_round", "payload_bytes", "seconds", "ranks")},
    )


def _final(content: Content, group: str) -> Final | None:
    if f"{group}/predicted" not in content.arrays:
        return None
    names = ("predicted", "confidence", "label", "sample", "macro_f1", "calibration_error", "retrieval")
    arrays: dict[str, Any] = {name: content.arrays[f"{group}/{name}"] for name in names}
    pairs = _axis(content, f"{group}/retrieval", "pair")
    measure = _axis(content, f"{group}/retrieval", "measure")
    return Final(measure=measure, pair=tuple(json.loads(pair) for pair in pairs), **arrays)


def _tuning(arrays: Mapping[str, Array]) -> dict[Pair, Choice]:
    choices: dict[Pair, Choice] = {}
    rows = range(len(arrays["tuning/data"])) if "tuning/data" in arrays else ()
    for row in rows:
        pair = (str(arrays["tuning/data"][row]), str(arrays["tuning/method"][row]))
        scores = tuple(arrays["tuning/validation"][row].tolist())
        before = choices.get(pair, Choice(str(arrays["tuning/key"][row]), (), None))
        chosen = len(before.tried) if arrays["tuning/is_chosen"][row] else before.chosen
        tried = (*before.tried, Tried(json.loads(str(arrays["tuning/settings"][row])), scores))
        choices[pair] = Choice(before.key, tried, chosen)
    return choices


def _axis(content: Content, name: str, key: str) -> tuple[str, ...]:
    return tuple(_names(content.attributes[name][key]))


def _names(value: Attribute) -> list[str]:
    return [str(name) for name in np.atleast_1d(np.asarray(value))]
