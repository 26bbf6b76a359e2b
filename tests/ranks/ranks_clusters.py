"""Inside ranks: agents whose encoders have turned alike find each other, and mix as the dense W among them does."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import cast

import numpy as np
import pytest
import torch
from mixing_cases import Case, draw_cases, gathered, lay_out, stub_plan
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.clustered import ClusteredExchange
from parse_mpi.exchange.world import World
from parse_mpi.methods.base import SliceSpec
from parse_mpi.methods.layout import ParameterSpan, SliceLayout
from parse_mpi.seeding import stream
from parse_mpi.topology.slice_graph import SliceGraph

WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)
EVERY, ROUNDS, WIDTH = 2, 4, 5
SOME = 5  # of the cases one in so many: K-means takes a while

pytestmark = pytest.mark.mpi


class Clustered:
    """The rows of a case, and the encoders of its agents, which turn round where the agent's camp does."""

    def __init__(self, world: World, case: Case, via: str):
        self.world = world
        self.graph = replace(case.graph, clusters=2)
        slices = {name: ("graph", width) for name, width in case.widths.items()}
        self.plan = stub_plan({"graph": self.graph}, slices, case.rank_of, world.size, "float64", via, EVERY)
        self.slices = lay_out(world, self.plan, case.values)
        self.encoders = self._add_encoders()
        self.exchange = ClusteredExchange(world, self.plan, self.graph, self.slices | self.encoders, 0)

    def _add_encoders(self) -> dict[str, SliceRows]:
        """Two groups hold another pair of modalities each."""
        vars(self.plan).update(shapes=dict.fromkeys("abc", (1,)))
        vars(self.plan.job).update(seed=3)
        pairs = dict(zip(self.graph.groups, ("ab", "bc"), strict=False))
        encoders = {}
        for m in "abc":
            holders = tuple(sorted(i for group, held in pairs.items() if m in held for i in group))
            spec = SliceSpec(f"encoder[{m}]", (), holders, "", (), m, anchored=True)
            cast(list[SliceSpec], self.plan.slices).append(spec)
            layout = SliceLayout((ParameterSpan("w", (WIDTH,), 0, WIDTH),))
            held = [i for i in holders if self.plan.rank_of[i] == self.world.rank]
            if held:
                state = {"reference": WIDTH}
                rows = SliceRows(spec.name, layout, held, 0, torch.float64, torch.device("cpu"), state=state)
                rows.state["reference"][:] = torch.from_numpy(np.stack([reference(i) for i in held]))
                encoders[spec.name] = rows
        return encoders

    def round(self, round_index: int) -> None:
        """Encoders turn, then the rows of the case mix."""
        for rows in self.encoders.values():
            sign = torch.tensor([[-1.0 if camp(round_index, i) else 1.0] for i in rows.agents.tolist()])
            rows.local[:] = sign * rows.state["reference"]
        self.exchange.start(round_index)
        self.exchange.mix_interior()
        self.exchange.wait()
        self.exchange.mix_boundary()

    def values(self) -> dict[str, NDArray[np.float64]]:
        return gathered(self.world, self.plan, self.slices)


def reference(agent: int) -> NDArray[np.float64]:
    return stream(1, "reference", agent).normal(size=WIDTH)


def camp(round_index: int, agent: int) -> int:
    return int(stream(2, "camp", round_index, agent).integers(2))


def planted(graph: SliceGraph, round_index: int) -> SliceGraph:
    """The graph of a round among those of each group that are in one camp."""
    camps = [[i for i in group if camp(round_index, i) == k] for group in graph.groups for k in (0, 1)]
    return replace(graph, groups=tuple(tuple(members) for members in camps if members), clusters=1)


def test_clusters_are_those_planted_and_mix_like_the_dense_product() -> None:
    several = 0
    for number, case in enumerate(islice(draw_cases(WORLD.size), None, None, SOME)):
        together, alone = (Clustered(world, case, ("neighbour", "p2p")[number % 2]) for world in (WORLD, ALONE))
        exact = dict(case.values)
        for r in range(ROUNDS):
            for one in (together, alone):
                one.round(r)
            expected = planted(case.graph, r)
            if (r + 1) % EVERY:
                assert together.exchange.clusters == ()
                assert together.exchange.sent_bytes() == together.exchange.payload_bytes() == {}
            else:
                assert set(together.exchange.clusters) == set(expected.groups), case
                several += len(expected.groups) > len(case.graph.groups)
                W = expected.at((r + 1) // EVERY - 1).dense()
                exact = {name: W @ x for name, x in exact.items()}
            for name, x in together.values().items():
                assert x.tobytes() == alone.values()[name].tobytes()
                assert np.linalg.norm(x - exact[name]) <= 1e-13 * np.linalg.norm(exact[name]), case
        together.exchange.free()
        alone.exchange.free()
    assert several > 4
