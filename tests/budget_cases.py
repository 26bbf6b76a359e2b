"""Random networks of several slice graphs for the tests of budgets, and what a budget makes of their matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from mixing_cases import stub_plan
from numpy.typing import NDArray

from parse_mpi.exchange.budget import Budget
from parse_mpi.exchange.lanes import Lane
from parse_mpi.job import Topology
from parse_mpi.plan import Plan
from parse_mpi.seeding import stream
from parse_mpi.topology.slice_graph import slice_graph


def draw_network(
    topology: dict[str, Any], seed: int, ranks: int = 1, dtype: str = "float64", via: str = "auto"
) -> Plan:
    """2 to 12 agents; all of them, two subsets and what these have in common mix over graphs of one kind."""
    draw = stream(seed, f"network {topology}")
    count = int(draw.integers(2, 13))
    everyone = np.arange(count)
    a, b = (everyone[draw.random(count) < 0.7] for _ in range(2))
    groups = {"all agents": everyone, "a": a, "b": b, "a and b": np.intersect1d(a, b)}
    spec = Topology.model_validate({**topology, "allow_disconnected": True})
    graphs = {name: slice_graph(name, [ids.tolist()], spec, seed, count) for name, ids in groups.items() if len(ids)}
    slices = {f"{name}, slice {k}": (name, int(draw.integers(1, 30))) for name in graphs for k in range(2)}
    return stub_plan(graphs, slices, draw.integers(0, ranks, count), ranks, dtype, via)


def draw_values(plan: Plan, seed: int) -> dict[str, NDArray[np.float64]]:
    """Rows of all holders of every slice."""
    draw = stream(seed, "values")
    return {spec.name: draw.normal(size=(len(spec.holders), plan.layouts[spec.name].width)) for spec in plan.slices}


def row_bytes(plan: Plan) -> int:
    """Bytes of one row of every slice."""
    return plan.item_bytes * sum(layout.width for layout in plan.layouts.values())


def least_bytes(plan: Plan) -> int:
    """The smallest budget that a job may have."""
    return 2 * plan.item_bytes * len(plan.slices)


def all_lanes(budget: Budget, round_index: int) -> dict[str, list[Lane]]:
    """The lanes of all graphs in a round."""
    return {graph.name: budget.schedule(graph).lanes(round_index) for graph in budget.graphs}


def carried(plan: Plan, budget: Budget, round_index: int) -> dict[str, NDArray[np.int64]]:
    """Slice -> int64 [sender, receiver, column]: how often each column crosses each link in a round."""
    count = len(plan.rank_of)
    found = {spec.name: np.zeros((count, count, plan.layouts[spec.name].width), np.int64) for spec in plan.slices}
    for lanes in all_lanes(budget, round_index).values():
        for lane in lanes:
            sender, receiver = lane.matrix.links().T
            for name, start, stop in lane.windows:
                found[name][sender, receiver, start:stop] += 1
    return found


def effective(lanes: Iterable[Lane], name: str, width: int, W: NDArray[np.float64]) -> NDArray[np.float64]:
    """[width, A, A]: what multiplies each column of a slice, if links without it change nothing."""
    made = np.tile(np.eye(len(W)), (width, 1, 1))
    for lane in lanes:
        difference = lane.matrix.dense() - np.eye(len(W))
        for start, stop in (window[1:] for window in lane.windows if window[0] == name):
            made[start:stop] += difference
    return made
