"""Random cases of mixing for the tests inside ranks: every rank draws the same, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.routing import ghost_bound
from parse_mpi.exchange.world import World
from parse_mpi.job import Topology
from parse_mpi.methods.base import SliceSpec
from parse_mpi.methods.layout import ParameterSpan, SliceLayout
from parse_mpi.plan import Plan
from parse_mpi.seeding import stream
from parse_mpi.topology.slice_graph import SliceGraph, slice_graph

KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "ring"},
    {"kind": "erdos-renyi", "probability": 0.3},
    {"kind": "complete"},
    {"kind": "random-gossip"},
    {"kind": "random-gossip", "base": "ring"},
    {"kind": "random-gossip", "base": "erdos-renyi", "probability": 0.4},
)


@dataclass(frozen=True)
class Case:
    """One graph with two slices of different width. values: slice -> float64 [holders, width] at the start."""

    graph: SliceGraph
    widths: dict[str, int]
    rank_of: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]


def draw_case(topology: dict[str, Any], scope: str, ranks: int, seed: int) -> Case:
    """Some of 1 to 14 agents hold the slices, in one or two groups, and lie on any ranks; a rank may have none."""
    draw = stream(seed, f"case {topology} {scope}")
    agent_count = int(draw.integers(1, 15))
    holders = draw.permutation(agent_count)[: draw.integers(1, agent_count + 1)]
    parts = (
        np.split(holders, [draw.integers(1, len(holders))]) if len(holders) > 1 and draw.random() < 0.3 else [holders]
    )
    groups = tuple(tuple(sorted(part.tolist())) for part in parts)
    spec = Topology(**topology, scope=scope, allow_disconnected=True)
    graph = slice_graph("graph", groups, spec, seed, agent_count)
    widths = {"slice a": int(draw.integers(1, 400)), "slice b": int(draw.integers(1, 40))}
    values = {name: draw.normal(size=(len(holders), width)) for name, width in widths.items()}
    return Case(graph, widths, draw.integers(0, ranks, agent_count), values)


def draw_cases(ranks: int, seeds: int = 2) -> Iterator[Case]:
    """Every kind and scope, `seeds` times."""
    for topology in KINDS:
        for scope in ("overlay", "induced"):
            for seed in range(seeds):
                yield draw_case(topology, scope, ranks, seed)


class Mixer:
    """The slice rows and the exchange of one case on one world, laid out as a run would."""

    def __init__(
        self,
        world: World,
        case: Case,
        via: str = "neighbour",
        dtype: str = "float32",
        tag: int = 0,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.world = world
        rank_of = case.rank_of if world.size > 1 else np.zeros_like(case.rank_of)
        holders = np.array(case.graph.agents)
        held = stream(seed, "row order", world.rank).permutation(holders[rank_of[holders] == world.rank])
        ghosts = ghost_bound(case.graph, rank_of, world.rank)
        layouts = {n: SliceLayout((ParameterSpan("w", (width,), 0, width),)) for n, width in case.widths.items()}
        self.slices: dict[str, SliceRows] = {}
        if len(held):
            for name, layout in layouts.items():
                rows = SliceRows(name, layout, held, ghosts, getattr(torch, dtype), torch.device(device))
                rows.local[:] = torch.from_numpy(case.values[name][np.searchsorted(holders, held)])
                rows.gradients.fill_(torch.nan)  # what a backward pass left there must not matter
                self.slices[name] = rows
        plan = SimpleNamespace(
            slices=[SliceSpec(n, ("w",), case.graph.agents, "graph", case.graph.groups) for n in case.widths],
            layouts=layouts,
            rank_of=rank_of,
            job=SimpleNamespace(dtype=dtype, exchange=SimpleNamespace(via=via)),
        )
        self.exchange = GraphExchange(world, cast(Plan, plan), case.graph, self.slices, tag)
        self.dtype = dtype
        self.widths = case.widths

    def round(self, round_index: int) -> None:
        """One mixing round, phase by phase as the trainer does it."""
        self.exchange.start(round_index)
        self.exchange.mix_interior()
        self.exchange.wait()
        self.exchange.mix_boundary()

    def values(self) -> dict[str, NDArray[Any]]:
        """Slice -> rows of all holders by ascending id, on every rank."""
        gathered = {}
        for name, width in self.widths.items():
            rows = self.slices.get(name)
            ids = rows.agents if rows else np.empty(0, np.int64)
            local = rows.local.cpu().numpy() if rows else np.empty((0, width), self.dtype)
            gathered[name] = self.world.gather_agents(ids, local)
        return gathered
