"""Random cases of mixing for the tests inside ranks: every rank draws the same, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.lanes import WholeRows
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
    {"kind": "chordal-ring"},
    {"kind": "torus"},
    {"kind": "star", "lazy": True},
    {"kind": "random-regular", "degree": 3},
    {"kind": "small-world", "degree": 4, "probability": 0.3},
    {"kind": "static-exponential", "directed": False},
    {
        "kind": "edge-list",
        "edges": ((0, 1), (1, 2), (1, 5), (2, 7), (3, 11), (5, 7), (6, 9), (7, 9)),
        "scope": "induced",
    },
    {"kind": "static-exponential", "directed": True, "scope": "overlay"},
    {"kind": "one-peer-exponential", "scope": "overlay"},
    {"kind": "base-k", "k": 1, "scope": "overlay"},
    {"kind": "base-k", "k": 2, "scope": "overlay"},
    {"kind": "matcha", "base": "torus", "budget": 0.6},
    {"kind": "matcha", "base": "ring", "budget": 0.3},
)


@dataclass(frozen=True)
class Case:
    """One graph with two slices of different width. values: slice -> float64 [holders, width] at the start."""

    graph: SliceGraph
    widths: dict[str, int]
    rank_of: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]


def draw_case(topology: dict[str, Any], scope: str, ranks: int, seed: int) -> Case:
    """Some of 1 to 14 agents hold the slices, in one or two groups, and lie on any ranks; a rank may have none.

    A topology that knows one scope only names it itself.
    """
    draw = stream(seed, f"case {topology} {scope}")
    agent_count = int(draw.integers(1, 15))
    holders = draw.permutation(agent_count)[: draw.integers(1, agent_count + 1)]
    parts = (
        np.split(holders, [draw.integers(1, len(holders))]) if len(holders) > 1 and draw.random() < 0.3 else [holders]
    )
    groups = tuple(tuple(sorted(part.tolist())) for part in parts)
    spec = Topology.model_validate({"scope": scope, **topology, "allow_disconnected": True})
    graph = slice_graph("graph", groups, spec, seed, agent_count)
    widths = {"slice a": int(draw.integers(1, 400)), "slice b": int(draw.integers(1, 40))}
    values = {name: draw.normal(size=(len(holders), width)) for name, width in widths.items()}
    return Case(graph, widths, draw.integers(0, ranks, agent_count), values)


def draw_cases(ranks: int, seeds: int = 1) -> Iterator[Case]:
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
        apart: bool = False,
    ):
        slices = {name: ("graph", width) for name, width in case.widths.items()}
        plan = stub_plan({"graph": case.graph}, slices, case.rank_of, world.size, dtype, via)
        self.world = world
        self.plan = plan
        self.slices = lay_out(world, plan, case.values, seed, device, apart)
        self.exchange = GraphExchange(world, plan, case.graph, self.slices, tag, WholeRows(plan, case.graph))

    def round(self, round_index: int) -> None:
        """One mixing round, phase by phase as the trainer does it."""
        self.exchange.start(round_index)
        self.finish()

    def finish(self) -> None:
        """The rest of a round that was started."""
        self.exchange.mix_interior()
        self.exchange.wait()
        self.exchange.mix_boundary()

    def values(self) -> dict[str, NDArray[Any]]:
        """Slice -> rows of all holders by ascending id, on every rank."""
        return gathered(self.world, self.plan, self.slices)


def stub_plan(
    graphs: Mapping[str, SliceGraph],
    slices: Mapping[str, tuple[str, int]],
    rank_of: NDArray[np.int64],
    ranks: int,
    dtype: str = "float32",
    via: str = "auto",
    every: int = 1,
) -> Plan:
    """What the exchange asks of a plan. slices: name -> the graph and the width of its rows."""
    layouts = {name: SliceLayout((ParameterSpan("w", (width,), 0, width),)) for name, (_, width) in slices.items()}
    plan = SimpleNamespace(
        graphs=graphs,
        slices=[
            SliceSpec(name, ("w",), graphs[graph].agents, graph, graphs[graph].groups, every=every)
            for name, (graph, _) in slices.items()
        ],
        layouts=layouts,
        rank_of=rank_of if ranks > 1 else np.zeros_like(rank_of),
        item_bytes=np.dtype(dtype).itemsize,
        travelling=lambda name: layouts[name].width,
        job=SimpleNamespace(dtype=dtype, exchange=SimpleNamespace(via=via)),
    )
    return cast(Plan, plan)


def lay_out(
    world: World,
    plan: Plan,
    values: Mapping[str, NDArray[np.float64]],
    seed: int = 0,
    device: str = "cpu",
    apart: bool = False,
) -> dict[str, SliceRows]:
    """The rows of this rank, in any order. values: slice -> [holders, width]."""
    dtype, slices = getattr(torch, plan.job.dtype), {}
    for spec in plan.slices:
        holders = np.array(spec.holders)
        held = stream(seed, "row order", world.rank).permutation(holders[plan.rank_of[holders] == world.rank])
        if not len(held):
            continue
        ghosts = ghost_bound(plan.graphs[spec.graph], plan.rank_of, world.rank)
        rows = SliceRows(spec.name, plan.layouts[spec.name], held, ghosts, dtype, torch.device(device), apart=apart)
        rows.local[:] = torch.from_numpy(values[spec.name][np.searchsorted(holders, held)])
        rows.gradients.fill_(torch.nan)  # what a backward pass left there must not matter
        slices[spec.name] = rows
    return slices


def gathered(world: World, plan: Plan, slices: Mapping[str, SliceRows]) -> dict[str, NDArray[Any]]:
    """Slice -> rows of all holders by ascending id, on every rank."""
    found = {}
    for name, layout in plan.layouts.items():
        rows = slices.get(name)
        ids = rows.agents if rows else np.empty(0, np.int64)
        local = rows.local.cpu().numpy() if rows else np.empty((0, layout.width), plan.job.dtype)
        found[name] = world.gather_agents(ids, local)
    return found
