"""Exchange inside clusters: who has changed alike since the method's stage began mixes together (method.md 3).

Of every holder its neighbours learn a number for each modality: how far its encoder has turned. That table reaches all
holders, and each works out the same clusters from it; so does every rank here. Then rows travel inside clusters alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.seeding import derive_seed
from parse_mpi.topology.clusters import clusters_of
from parse_mpi.topology.graphs import Group
from parse_mpi.topology.slice_graph import SliceGraph


class ClusteredExchange:
    """The exchange of all slices that mix over one graph, in clusters that are found anew whenever they are due.

    What it says of clusters and bytes is that of the last round that was started.
    """

    def __init__(self, world: World, plan: Plan, graph: SliceGraph, slices: Mapping[str, SliceRows], index: int):
        """slices: all of this rank. index: of the graph among all, the same on every rank."""
        self.world = world
        self.plan = plan
        self.graph = graph
        self.slices = slices
        self.index = index
        self.every = max(spec.every for spec in plan.slices if spec.graph == graph.name)
        self._inside: list[GraphExchange] = []  # that of the clusters, where the round has one

    @property
    def requests(self) -> Sequence[MPI.Request]:
        return [request for exchange in self._inside for request in exchange.requests]

    @property
    def clusters(self) -> tuple[Group, ...]:
        """Who mixes with whom in this round; nobody where the slices are not due."""
        return self._inside[0].graph.groups if self._inside else ()

    def start(self, round_index: int) -> None:
        """Find the clusters, pack the rows that remote neighbours in them need, and post the exchange."""
        self.free()
        if (round_index + 1) % self.every:
            return
        graph = replace(self.graph, groups=self._find(round_index), clusters=1)
        whole_rows = WholeRows(self.plan, graph)
        self._inside = [GraphExchange(self.world, self.plan, graph, self.slices, self.index, whole_rows)]
        self._inside[0].start(round_index)

    def mix_interior(self) -> None:
        for exchange in self._inside:
            exchange.mix_interior()

    def wait(self) -> None:
        for exchange in self._inside:
            exchange.wait()

    def mix_boundary(self) -> None:
        for exchange in self._inside:
            exchange.mix_boundary()

    def sent_bytes(self) -> dict[str, Counter[int]]:
        return self._inside[0].sent_bytes() if self._inside else {}

    def payload_bytes(self) -> dict[str, int]:
        return self._inside[0].payload_bytes() if self._inside else {}

    def waiting_bytes(self, round_index: int) -> dict[str, int]:
        return {}

    def free(self) -> None:
        """Give back what the last round needed."""
        for exchange in self._inside:
            exchange.free()
        self._inside = []

    def _find(self, round_index: int) -> tuple[Group, ...]:
        """The clusters of every group of the graph, each ascending, equal on all ranks."""
        ids, turned_AM = self._turned()
        table_AM = self.world.gather_agents(ids, turned_AM)
        row = {agent: k for k, agent in enumerate(self.graph.agents)}
        found: list[Group] = []
        for group in self.graph.groups:
            of_group = table_AM[[row[agent] for agent in group]]
            seed = derive_seed(self.plan.job.seed, "clusters", round_index, *group)
            cluster = clusters_of(of_group[:, ~np.isnan(of_group).any(0)], self.graph.clusters, seed)
            members = np.array(group)
            found += [tuple(members[cluster == k].tolist()) for k in range(cluster.max() + 1)]
        self.world.require_equal("clusters of agents", str(found))
        return tuple(found)

    def _turned(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Local holders, and how far the encoder of each modality has turned since its reference, [A, M]; nan where an
        agent lacks the modality."""
        ids = np.array([i for i in self.graph.agents if self.plan.rank_of[i] == self.world.rank], np.int64)
        modalities = list(self.plan.shapes)
        turned_AM = np.full((len(ids), len(modalities)), np.nan)
        for spec in self.plan.slices:
            if spec.anchored and spec.name in self.slices:
                rows = self.slices[spec.name]
                _, mine, held = np.intersect1d(ids, rows.agents, return_indices=True)
                both = (matrix[torch.from_numpy(held)] for matrix in (rows.local, rows.state["reference"]))
                now, before = (matrix.double().cpu().numpy() for matrix in both)
                turned_AM[mine, modalities.index(spec.modality)] = list(map(cosine_distance, now, before))
        return ids, turned_AM


def cosine_distance(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """1 - cos(x, y), exactly 0 for equal vectors, also where one is zero."""
    length = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return max(0.0, 1.0 - float((x * y).sum()) / length) if length else 0.0
