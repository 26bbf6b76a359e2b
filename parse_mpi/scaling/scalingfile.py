"""scaling.h5: all that a scaling study measured, in one file; docs/file-formats.md lists the data sets.

Shapes: R measured rounds, K ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parse_mpi.scaling.loads import LOADS, Loads
from parse_mpi.storage.layout import Array, Attribute
from parse_mpi.storage.read import Content
from parse_mpi.storage.results import read_result
from parse_mpi.storage.write import write_sealed_hdf5

FORMAT, FORMAT_VERSION = "parse-mpi scaling", 1
WORK, MIXING, EXCHANGE = ("local_steps",), ("pack", "mix"), ("wait", "agree")  # phases that every round has, by part
EVERY_ROUND = (*WORK, *MIXING, *EXCHANGE)

Status = Literal["finished", "failed", "missing"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What one launch measured in the rounds that count: those after the warm-up of each start.

    round [R]; seconds [R, K, phase]; travel_seconds [R, K]: rows under way; sent_bytes [R, K]: to other ranks.
    host, host_cores, threads, peak_bytes [K]: where a rank ran, on how many cores of the host, with how many compute
    threads, and the most memory that it had resident. loads: what it had to do, counted from the plan.
    """

    phase: tuple[str, ...]
    round: NDArray[np.int64]
    seconds: NDArray[np.float64]
    travel_seconds: NDArray[np.float64]
    sent_bytes: NDArray[np.int64]
    host: NDArray[np.str_]
    host_cores: NDArray[np.int64]
    threads: NDArray[np.int64]
    peak_bytes: NDArray[np.int64]
    loads: Loads

    def of(self, *phases: str) -> NDArray[np.float64]:
        """Seconds of some phases together [R, K]."""
        total: NDArray[np.float64] = self.seconds[:, :, [self.phase.index(name) for name in phases]].sum(2)
        return total

    @property
    def node_of(self) -> NDArray[np.int64]:
        """Number of the node of each rank [K]."""
        return nodes_of(self.host)

    def round_seconds(self) -> NDArray[np.float64]:
        """How long each round took its slowest rank [R], without evaluation, records and checkpoints."""
        slowest: NDArray[np.float64] = self.of(*EVERY_ROUND).max(1)
        return slowest


@dataclass(frozen=True)
class Launched:
    """One launch of a point. reason: why it has no result."""

    curve: str
    ranks: int
    nodes: int
    agents: int
    repeat: int
    status: Status
    reason: str = ""
    result: Measured | None = None

    @property
    def point(self) -> tuple[str, int, int, int]:
        """What its repeats have in common."""
        return self.curve, self.ranks, self.nodes, self.agents


@dataclass(frozen=True)
class Scaling:
    """A whole study. kinds: curve -> strong, weak or group. job, order: name of the job, and its `train.order`.

    provenance: time, command, commits, machines, and the text of the study file.
    """

    name: str
    job: str
    order: str
    kinds: dict[str, str]
    warm_up: int
    launches: tuple[Launched, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    def points(self) -> dict[tuple[str, int, int, int], list[Measured]]:
        """What was measured at each point of each curve, in the order of the study file."""
        found: dict[tuple[str, int, int, int], list[Measured]] = {}
        for launch in self.launches:
            if launch.result is not None:
                found.setdefault(launch.point, []).append(launch.result)
        return found


def nodes_of(host: NDArray[np.str_]) -> NDArray[np.int64]:
    """A number for each host, in the order of their names [K]."""
    numbers: NDArray[np.int64] = np.unique(host, return_inverse=True)[1].astype(np.int64)
    return numbers


def write_scaling_file(path: Path, scaling: Scaling) -> None:
    """Write scaling.h5, replacing it in one step. Raises StorageError."""
    launches = scaling.launches
    arrays: dict[str, Array] = {}
    for name in ("curve", "status", "reason"):
        arrays[f"launches/{name}"] = np.array([getattr(launch, name) for launch in launches], np.str_)
    for name in ("ranks", "nodes", "agents", "repeat"):
        arrays[f"launches/{name}"] = np.array([getattr(launch, name) for launch in launches], np.int64)
    attributes: dict[str, dict[str, Attribute]] = {"": _root(scaling)}
    for index, launch in enumerate(launches):
        if launch.result is not None:
            for name, values, own in _arrays(launch.result):
                arrays[f"{_group(index)}/{name}"] = values
                attributes[f"{_group(index)}/{name}"] = own
    write_sealed_hdf5(path, arrays, attributes)


def load_scaling(path: Path) -> Scaling:
    """Read scaling.h5. Raises StorageError where it is not there, damaged, or of a newer version."""
    return read_result(path, FORMAT, FORMAT_VERSION, "scaling", _scaling)


def _root(scaling: Scaling) -> dict[str, Attribute]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": scaling.name,
        "job": scaling.job,
        "order": scaling.order,
        "kinds": json.dumps(scaling.kinds),
        "warm_up": scaling.warm_up,
        "provenance": json.dumps(scaling.provenance),
    }


def _arrays(result: Measured) -> Iterator[tuple[str, Array, dict[str, Attribute]]]:
    """Name inside the group of a launch, values, and what the axes mean."""
    yield "round", result.round, {}
    yield "seconds", result.seconds, {"dimensions": ["round", "rank", "phase"], "phase": list(result.phase)}
    for name in ("travel_seconds", "sent_bytes"):
        yield name, getattr(result, name), {"dimensions": ["round", "rank"]}
    for name in ("host", "host_cores", "threads", "peak_bytes"):
        yield name, getattr(result, name), {"dimensions": ["rank"]}
    yield "loads", result.loads.table(), {"dimensions": ["rank", "load"], "load": list(LOADS)}


def _group(index: int) -> str:
    return f"results/{index:05d}"


def _scaling(content: Content) -> Scaling:
    root, arrays = content.attributes[""], content.arrays
    names = ("curve", "status", "reason", "ranks", "nodes", "agents", "repeat")
    launches = []
    for index in range(len(arrays["launches/curve"])):
        values: dict[str, Any] = {name: arrays[f"launches/{name}"][index].item() for name in names}
        launches.append(Launched(**values, result=_result(content, _group(index))))
    return Scaling(
        name=str(root["name"]),
        job=str(root["job"]),
        order=str(root["order"]),
        kinds=json.loads(str(root["kinds"])),
        warm_up=int(np.asarray(root["warm_up"])),
        launches=tuple(launches),
        provenance=json.loads(str(root["provenance"])),
    )


def _result(content: Content, group: str) -> Measured | None:
    if f"{group}/seconds" not in content.arrays:
        return None
    names = (
        "round", "seconds", "travel_seconds", "sent_bytes", "host", "host_cores", "threads", "peak_bytes",
    )  # fmt: skip
    arrays: dict[str, Any] = {name: content.arrays[f"{group}/{name}"] for name in names}
    phases = np.atleast_1d(np.asarray(content.attributes[f"{group}/seconds"]["phase"]))
    loads = Loads.of(content.arrays[f"{group}/loads"])
    return Measured(phase=tuple(map(str, phases)), loads=loads, **arrays)
