"""What a round costs: constants fitted to a scaling study, and the error of predictions for points left out of the fit.

    round = local steps + mixing + exchange
    local steps = crowd x (a + b work)            work: samples x parameters of the rank that has most
    mixing      = crowd x (c + d bytes moved)     the bandwidth of memory: rows that are read, packed and laid down
    exchange    = crowd x (e messages + f bytes) within a node + g messages + h bytes between nodes

crowd is how many compute threads share a core, at least 1. Bytes between nodes are those of the busiest node, whose
network card its ranks share; all else is that of the busiest rank. The one reduction of a round counts as the messages
of a binary tree. Every part is fitted to its own phases by least squares of relative errors with constants >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from parse_mpi.errors import ParseMpiError
from parse_mpi.scaling.loads import Loads
from parse_mpi.scaling.scalingfile import EXCHANGE, MIXING, WORK, Measured, Scaling

Numbers = NDArray[np.float64]
Key = tuple[int, int, int]  # ranks, nodes, agents
PARTS: dict[str, tuple[str, ...]] = {
    "local steps": ("rounds", "work"),
    "mixing": ("rounds", "moved_bytes"),
    "exchange": ("messages_within", "bytes_within", "messages_between", "bytes_between"),
}
BETWEEN = ("messages_between", "bytes_between")  # the network's, which no core has a share in
FITTED = "fitted"
FARTHEST = 4.0  # times the fitted range: beyond it a prediction is called extrapolation


@dataclass(frozen=True)
class Demand:
    """What decides over a round. features: name -> amount on the busiest rank or node. crowd: threads a core."""

    features: Mapping[str, float]
    crowd: float

    def amount(self, name: str) -> float:
        """A feature as it is multiplied with its constant."""
        return self.features[name] * (1.0 if name in BETWEEN else self.crowd)


@dataclass(frozen=True)
class Sample:
    """A measured size: what was demanded, and median seconds by part of the rank that works longest in a round."""

    key: Key
    demand: Demand
    seconds: Mapping[str, float]
    round_s: float


@dataclass(frozen=True)
class HeldOut:
    """A size, and what a model predicts for it that was fitted to all others; nan where those can't tell."""

    key: Key
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.predicted_s / self.measured_s - 1.0


@dataclass(frozen=True)
class CostModel:
    """constants: (part, feature) -> seconds for one of it. ranges: feature -> the least and the most that was fitted.

    network: where the constants between nodes come from, "" for nowhere.
    """

    constants: Mapping[tuple[str, str], float]
    ranges: Mapping[str, tuple[float, float]]
    network: str

    def seconds(self, demand: Demand) -> dict[str, float]:
        """Of a round, by part."""
        return {
            part: sum(self.constants[part, name] * demand.amount(name) for name in features)
            for part, features in PARTS.items()
        }

    def round_s(self, demand: Demand) -> float:
        return sum(self.seconds(demand).values())

    def beyond(self, demand: Demand) -> list[str]:
        """Features that lie more than FARTHEST times outside of what was fitted.

        What is given of the network, and not fitted, has no range.
        """
        return [
            name
            for name, (low, high) in self.ranges.items()
            if (amount := demand.features[name]) > FARTHEST * high or 0 < amount < low / FARTHEST
        ]


def demand_of(loads: Loads, node_of: NDArray[np.int64], crowd: float) -> Demand:
    """loads of the ranks, node_of [K] each."""
    ranks, nodes = len(node_of), len(np.unique(node_of))
    on_node = -(-ranks // nodes)
    from_node = np.bincount(node_of, weights=loads.bytes_between)
    return Demand(
        {
            "rounds": 1.0,
            "ranks": float(ranks),
            "work": float(loads.work.max()),
            "moved_bytes": float(loads.moved_bytes.max()),
            "messages_within": float(loads.messages_within.max()) + math.ceil(math.log2(on_node)),
            "bytes_within": float(loads.bytes_within.max()),
            "messages_between": float(loads.messages_between.max()) + math.ceil(math.log2(nodes)),
            "bytes_between": float(from_node.max()),
        },
        crowd,
    )


def crowding(threads_on_node: float, cores: int) -> float:
    """How many compute threads share a core, at least 1."""
    return max(1.0, threads_on_node / cores)


def samples_of(scaling: Scaling) -> list[Sample]:
    """A sample for each size that was measured: its launches together, on whatever curves they lie."""
    found: dict[Key, list[Measured]] = {}
    for (_, *size), results in scaling.points().items():
        ranks, nodes, agents = size
        found.setdefault((ranks, nodes, agents), []).extend(results)
    return [_sample(key, results) for key, results in found.items()]


def part_seconds(result: Measured) -> dict[str, Numbers]:
    """Seconds of each round by part [R], on the rank that works longest in it; they add up to the slowest rank's round.

    What its round lasts beyond that rank's work is the exchange: others wait for it as well.
    """
    local, mixing = result.of(*WORK), result.of(*MIXING)
    rounds, longest = np.arange(len(local)), (local + mixing).argmax(1)
    worked = {"local steps": local[rounds, longest], "mixing": mixing[rounds, longest]}
    whole = result.of(*WORK, *MIXING, *EXCHANGE).max(1)
    return {**worked, "exchange": whole - worked["local steps"] - worked["mixing"]}


def fit(samples: Sequence[Sample]) -> CostModel:
    """Constants from measured points. Raises ParseMpiError where there is none."""
    if not samples:
        raise ParseMpiError("no point of the scaling study has finished: nothing to fit a cost model to")
    constants: dict[tuple[str, str], float] = {}
    for part, features in PARTS.items():
        told = [s for s in samples if any(s.demand.features[name] for name in features) and s.seconds[part] > 0]
        found = _least_squares(told, part, features)
        constants |= {(part, name): value for name, value in zip(features, found, strict=True)}
    ranges = {name: _range([s.demand.features[name] for s in samples]) for name in samples[0].demand.features}
    several = ranges["messages_between"][1] > 0
    fitted = {name: span for name, span in ranges.items() if several or name not in BETWEEN}
    return CostModel(constants, fitted, FITTED if several else "")


def hold_out(samples: Sequence[Sample]) -> list[HeldOut]:
    """Each size predicted by a model that was fitted to all others."""
    found = []
    for k, sample in enumerate(samples):
        others = [*samples[:k], *samples[k + 1 :]]
        can_tell = others and all(
            any(other.demand.features[name] for other in others)
            for name in (*PARTS["exchange"], "work")
            if sample.demand.features[name]
        )
        predicted_s = fit(others).round_s(sample.demand) if can_tell else math.nan
        found.append(HeldOut(sample.key, sample.round_s, predicted_s))
    return found


def _sample(key: Key, results: Sequence[Measured]) -> Sample:
    parts = [part_seconds(result) for result in results]
    first = results[0]
    on_node = np.bincount(first.node_of, weights=first.threads)
    cores = np.array([first.host_cores[first.node_of == node].max() for node in range(len(on_node))])
    crowd = max(crowding(float(t), int(c)) for t, c in zip(on_node, cores, strict=True))
    return Sample(
        key=key,
        demand=demand_of(first.loads, first.node_of, crowd),
        seconds={part: float(np.median(np.concatenate([p[part] for p in parts]))) for part in PARTS},
        round_s=float(np.median(np.concatenate([result.round_seconds() for result in results]))),
    )


def _least_squares(samples: Sequence[Sample], part: str, features: Sequence[str]) -> list[float]:
    """Constants >= 0 of a part that make the squares of relative errors least; 0 for what nobody did."""
    if not samples:
        return [0.0] * len(features)
    amounts = np.array([[sample.demand.amount(name) for name in features] for sample in samples])
    relative = amounts / np.array([sample.seconds[part] for sample in samples])[:, None]
    scale = np.where(relative.any(0), np.abs(relative).max(0), 1.0)  # features differ by 10 orders of magnitude
    found, _ = nnls(relative / scale, np.ones(len(samples)))
    return [float(value) for value in found / scale]


def _range(amounts: Sequence[float]) -> tuple[float, float]:
    """The least amount above 0 and the largest."""
    above = [amount for amount in amounts if amount > 0]
    return (min(above), max(above)) if above else (0.0, 0.0)
