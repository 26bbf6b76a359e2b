"""Consensus distance of every slice on every connected component of its graph (method.md 1.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from parse_mpi.agents.group import AgentGroup
from parse_mpi.measures.consensus import consensus_distance
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


def _distance(world: World, plan: Plan, group: AgentGroup, name: str, agents: tuple[int, ...]) -> float:
    held = group.slices.get(name)
    row = np.flatnonzero(np.isin(held.agents, agents)) if held else np.empty(0, np.int64)
    ids = held.agents[row] if held else row
    exact = plan.job.mode == "exact"

    def local(part: slice) -> NDArray[np.float64]:
        if held is None:
            return np.empty((0, part.stop - part.start))
        values: NDArray[np.float64] = held.local[torch.from_numpy(row), part].double().cpu().numpy()
        return values

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return world.sum_over_agents(ids, values, exact)

    width = plan.layouts[name].width
    return consensus_distance(width, max(1, BLOCK_VALUES // len(agents)), local, total, len(agents))
