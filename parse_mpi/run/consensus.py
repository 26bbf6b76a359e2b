"""How far agents differ in every slice on every connected component of its graph (method.md 1.7), and drifts (4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.group import AgentGroup
from parse_mpi.agents.rows import SliceRows
from parse_mpi.measures.consensus import consensus_distance, mean_drift
from parse_mpi.plan import Plan

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

BLOCK_VALUES = 1 << 20  # float64 values gathered at a time
Component = tuple[str, tuple[int, ...]]  # a slice, and agents that its graph connects


def components(plan: Plan) -> list[Component]:
    """What a consensus distance is measured over: (slice, agents) for each connected component of its graph.

    A slice without a graph counts as one component: the distance then says how far its holders drifted apart.
    """
    parts = []
    for spec in plan.slices:
        graph = plan.graphs.get(spec.graph)
        groups = graph.components() if graph else [spec.holders]
        parts += [(spec.name, agents) for agents in groups if len(agents) > 1]
    return parts


def consensus_distances(world: World, plan: Plan, group: AgentGroup) -> dict[Component, float]:
    """Consensus distance of every component, equal on all ranks."""
    return {(name, agents): _distance(world, plan, group, name, agents) for name, agents in components(plan)}


def mean_drifts(world: World, plan: Plan, group: AgentGroup) -> dict[Component, float]:
    """How far personal weights moved the mean of every component of a personal slice in the last round.

    Equal on all ranks, and called by all of them together.
    """
    personal = {spec.name for spec in plan.slices if spec.personal}
    return {
        (name, agents): _drift(world, plan, group, name, agents)
        for name, agents in components(plan)
        if name in personal
    }


def _distance(world: World, plan: Plan, group: AgentGroup, name: str, agents: tuple[int, ...]) -> float:
    held = group.slices.get(name)
    rows = held.local if held else None
    row, total = _members(world, plan, held, agents)

    def local(part: slice) -> NDArray[np.float64]:
        return _values(rows, row, part)

    width = plan.layouts[name].width
    return consensus_distance(width, max(1, BLOCK_VALUES // len(agents)), local, total, len(agents))


def _drift(world: World, plan: Plan, group: AgentGroup, name: str, agents: tuple[int, ...]) -> float:
    held = group.slices.get(name)
    rows, mixed = (held.local, group.personal.mixed(name)) if held and group.personal else (None, None)
    row, total = _members(world, plan, held, agents)

    def pair(part: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return _values(mixed, row, part), _values(rows, row, part)

    return mean_drift(plan.layouts[name].width, max(1, BLOCK_VALUES // len(agents)), pair, total)


def _members(
    world: World, plan: Plan, held: SliceRows | None, agents: tuple[int, ...]
) -> tuple[NDArray[np.int64], Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """Which local rows of a slice are those of some agents, and the sum over all ranks of what these agents have."""
    row = np.flatnonzero(np.isin(held.agents, agents)) if held else np.empty(0, np.int64)
    ids = held.agents[row] if held else row

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return world.sum_over_agents(ids, values, plan.job.mode == "exact")

    return row, total


def _values(rows: Tensor | None, row: NDArray[np.int64], part: slice) -> NDArray[np.float64]:
    """Some columns of some rows, float64; of no rows on a rank that has none of them."""
    if rows is None:
        return np.empty((0, part.stop - part.start))
    values: NDArray[np.float64] = rows[torch.from_numpy(row), part].double().cpu().numpy()
    return values
