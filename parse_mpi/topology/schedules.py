"""What the members of one group do round by round: the W of every kind of topology, and how fast it mixes.

A schedule repeats itself after `phases` rounds; 0 says that every round is drawn at random. `step` is 1, or 1/2 for a
lazy W: all weights between agents are multiplied with it. Everything here is a function of the job's topology and seed
and of the members.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from parse_mpi.job import Topology
from parse_mpi.seeding import derive_seed, stream
from parse_mpi.topology import spectral
from parse_mpi.topology.base_k import base_graph
from parse_mpi.topology.generators import draw_edges, exponential_hops
from parse_mpi.topology.graphs import (
    Edges,
    Group,
    Pairs,
    UndirectedGraph,
    complete_matching,
    greedy_matching,
    induced,
    ordered,
    stacked,
    without,
)
from parse_mpi.topology.matcha import Activation, activation
from parse_mpi.topology.mixing import MixingMatrix, both_directions, from_edges, from_links, metropolis

SAMPLED_ROUNDS = 500
SAMPLED_AGENTS = 100  # up to so many a sample is quick and better than its stand-in, beyond it is neither

Cut = frozenset[tuple[int, int]]


class Schedule(ABC):
    """The rounds of one group. union: the undirected graph of all links that any round may use."""

    phases: int
    directed: ClassVar[bool] = False

    def __init__(self, members: Group, step: float, union: UndirectedGraph):
        self.members = members
        self.agents = np.array(members, dtype=np.int64)
        self.step = step
        self.union = union

    @abstractmethod
    def at(self, round_index: int) -> MixingMatrix:
        """The mixing matrix of a round, among the members."""

    @abstractmethod
    def gap(self) -> float:
        """The spectral gap of at least two members who hang together, as SliceGraph.spectral_gap defines it."""

    @abstractmethod
    def active_degree(self) -> float:
        """From how many others a member receives in a round, on average over members and rounds."""

    def exact_after(self) -> int | None:
        """Rounds, counted from the start of a cycle, after which all members have the exact mean; None: never."""
        return None

    def links(self) -> Pairs:
        """int64[L, 2], (sender, receiver) of every link that any round may use."""
        return both_directions(self.union.edges)


class Static(Schedule):
    """One undirected graph with Metropolis weights."""

    phases = 1

    @cached_property
    def matrix(self) -> MixingMatrix:
        """W."""
        return metropolis(self.agents, self.union.edges, self.step)

    def at(self, round_index: int) -> MixingMatrix:
        return self.matrix

    def gap(self) -> float:
        second, smallest = self._eigenvalue_ends()
        return 1.0 - max(second, -smallest)

    def smallest_eigenvalue(self) -> float:
        """Of W, 1 for a single member."""
        return self._eigenvalue_ends()[1] if len(self.members) > 1 else 1.0

    def active_degree(self) -> float:
        return float(self.union.degrees().mean())

    def exact_after(self) -> int | None:
        return 1 if self.union.is_complete and self.step == 1.0 else None

    def _eigenvalue_ends(self) -> tuple[float, float]:
        """The second largest and the smallest eigenvalue of W, from those of W with step 1."""
        plain = self.matrix if self.step == 1.0 else metropolis(self.agents, self.union.edges)
        hangs_together = len(self.union.parts()) == 1
        ends = spectral.metropolis_ends(plain) if hangs_together else spectral.eigenvalue_ends(plain)
        second, smallest = (1.0 - self.step * (1.0 - eigenvalue) for eigenvalue in ends)
        return second, smallest


class ExactMean(Schedule):
    """Every round all members have the mean of all, weighted: what a server would send back (FedAvg's average)."""

    phases = 1

    def __init__(self, members: Group, weights: NDArray[np.int64]):
        """weights [A] of the members, positive."""
        super().__init__(members, 1.0, UndirectedGraph(members, lambda: _all_pairs(members), is_complete=True))
        share = dict(zip(members, (weights / weights.sum()).tolist(), strict=True))
        links = self.links()
        self.matrix = from_links(self.agents, links, np.array([share[i] for i in links[:, 0].tolist()]))

    def at(self, round_index: int) -> MixingMatrix:
        return self.matrix

    def gap(self) -> float:
        return 1.0

    def active_degree(self) -> float:
        return float(len(self.members) - 1)

    def exact_after(self) -> int | None:
        return 1


class Cycle(Schedule):
    """A few matrices in turn."""

    def __init__(self, members: Group, step: float, matrices: list[MixingMatrix], averages: bool):
        """averages: whether the product of all is the exact mean when step is 1."""
        super().__init__(members, step, UndirectedGraph(members, lambda: ordered(self.links())))
        self.matrices = matrices
        self.phases = len(matrices)
        self.averages = averages

    def at(self, round_index: int) -> MixingMatrix:
        return self.matrices[round_index % self.phases]

    def gap(self) -> float:
        left = spectral.mean_square_contraction(self.matrices)
        return 1.0 - (left if self.phases > 1 else math.sqrt(left))  # rho squared, of one symmetric W

    def active_degree(self) -> float:
        return float(np.mean([matrix.degrees.mean() for matrix in self.matrices]))

    def exact_after(self) -> int | None:
        return self.phases if self.averages and self.step == 1.0 else None

    def links(self) -> Pairs:
        return np.unique(stacked(matrix.links() for matrix in self.matrices), axis=0)


class BaseK(Cycle):
    """The Base-(k+1) graph."""

    def __init__(self, members: Group, step: float, k: int):
        ids = np.array(members, dtype=np.int64)
        rounds = [from_edges(ids, ids[r.all_edges()], step * r.all_weights()) for r in base_graph(len(members), k)]
        super().__init__(members, step, rounds or [_alone(ids)], averages=True)


class DirectedExponential(Cycle):
    """Rows go from rank i to i + 2^t, for all t below log2 of the members: at once, or one t a round (one-peer)."""

    directed = True

    def __init__(self, members: Group, step: float, one_peer: bool):
        ids, hops = np.array(members, dtype=np.int64), exponential_hops(len(members))
        self.hops = [(hop,) for hop in hops] if one_peer else [hops]
        reached = 2 ** len(hops) if one_peer else 1 + len(hops)
        self.weight = step / (2.0 if one_peer else 1.0 + len(hops))
        matrices = [self._matrix(ids, phase) for phase in self.hops]
        super().__init__(members, step, matrices or [_alone(ids)], averages=reached == len(ids))

    def gap(self) -> float:
        """From the discrete Fourier transform, which holds the eigenvalues of a W whose rows are all shifts of one."""
        count = len(self.members)
        rows_TA = np.zeros((len(self.hops), count))
        for row_A, hops in zip(rows_TA, self.hops, strict=True):
            row_A[list(hops)] = self.weight
            row_A[0] = 1.0 - self.weight * len(hops)
        size_TA = np.abs(np.fft.fft(rows_TA))[:, 1:]
        return 1.0 - float(size_TA.max() if self.phases == 1 else np.square(size_TA).mean(axis=0).max())

    def _matrix(self, ids: NDArray[np.int64], hops: tuple[int, ...]) -> MixingMatrix:
        links = stacked(np.stack([ids, np.roll(ids, -hop)], axis=1) for hop in hops)
        return from_links(ids, links, np.full(len(links), self.weight))


class Gossip(Schedule):
    """Every round a maximal matching of the union graph, drawn from (seed, members, round), whose pairs average.

    On a complete graph it is uniform; on others edges are taken greedily in a random order.
    """

    phases = 0

    def __init__(self, members: Group, step: float, union: UndirectedGraph, seed: int):
        super().__init__(members, step, union)
        self.seed = derive_seed(seed, "gossip", *members)

    def at(self, round_index: int) -> MixingMatrix:
        pairs = self._matching(round_index)
        return from_edges(self.agents, pairs, np.full(len(pairs), self.step / 2.0))

    def gap(self) -> float:
        if self.union.is_complete:
            return spectral.complete_meeting_gap(len(self.members), self.step)
        return spectral.meeting_gap(self.agents, self.union.edges, self._meeting_probabilities, self.step)

    def active_degree(self) -> float:
        pairs = len(self.members) // 2 if self.union.is_complete else self._meeting_probabilities.sum()
        return float(2.0 * pairs / len(self.members))

    def _matching(self, round_index: int) -> Edges:
        generator = stream(self.seed, "round", round_index)
        if self.union.is_complete:  # without listing its edges
            return complete_matching(self.members, generator)
        return self.union.edges[greedy_matching(self.union.edges, generator)]

    @cached_property
    def _meeting_probabilities(self) -> NDArray[np.float64]:
        """float64[E], how likely each edge of the union graph is in a matching; a sample or an estimate but for rings.

        A sample's gap is low on average, as the second eigenvalue is convex, by less than 1 / sqrt(rounds).
        """
        edges, count = self.union.edges, len(self.members)
        if len(self.union.parts()) == 1 and (self.union.degrees() == 2).all():  # a ring, whatever it was drawn as
            return np.full(count, spectral.ring_meeting_probability(count))
        if count > SAMPLED_AGENTS:
            return spectral.tree_meeting_probabilities(np.searchsorted(self.agents, edges), count)
        met = np.zeros(len(edges))
        for round_index in range(SAMPLED_ROUNDS):
            met[greedy_matching(edges, stream(self.seed, "round", round_index))] += 1.0
        return met / SAMPLED_ROUNDS


class Matcha(Schedule):
    """Matchings of the union graph, each active or not in a round by a draw from (seed, members, round).

    Parts of a union graph that falls apart have matchings, probabilities and alpha of their own.
    """

    phases = 0

    def __init__(self, members: Group, step: float, union: UndirectedGraph, seed: int, budget: float):
        super().__init__(members, step, union)
        self.seed = derive_seed(seed, "matcha", *members)
        self.budget = budget

    @cached_property
    def activations(self) -> list[tuple[Group, Activation]]:
        """Each part of at least two members, and what MATCHA has worked out for it."""
        parts = [part for part in self.union.parts() if len(part) > 1]
        edges = [np.searchsorted(part, induced(self.union.edges, part)) for part in parts]
        return [(part, activation(e, len(part), self.budget)) for part, e in zip(parts, edges, strict=True)]

    def at(self, round_index: int) -> MixingMatrix:
        edges, weights = [], [np.empty(0)]
        generator = stream(self.seed, "round", round_index)
        for part, drawn in self.activations:
            active = generator.random(len(drawn.probabilities)) < drawn.probabilities
            chosen = active[drawn.matching]
            edges.append(np.array(part)[drawn.edges[chosen]])
            weights.append(np.full(chosen.sum(), self.step * drawn.alpha))
        return from_edges(self.agents, stacked(edges), np.concatenate(weights))

    def gap(self) -> float:
        ((_, drawn),) = self.activations
        return 1.0 - drawn.contraction(self.step * drawn.alpha)

    def active_degree(self) -> float:
        return sum(drawn.mean_degree * drawn.count for _, drawn in self.activations) / len(self.members)


def make_schedule(spec: Topology, members: Group, seed: int, agent_count: int, cut: Cut) -> Schedule:
    """The schedule of a group of ascending ids among agents 0 .. agent_count - 1, without the links in `cut`."""
    step = 0.5 if spec.lazy else 1.0
    if spec.kind == "base-k":
        assert spec.k is not None
        return BaseK(members, step, spec.k)
    if spec.kind == "one-peer-exponential" or spec.directed:
        return DirectedExponential(members, step, one_peer=spec.kind == "one-peer-exponential")
    if spec.kind == "random-gossip":
        return Gossip(members, step, _draw_graph(spec.base, spec, members, seed, agent_count, cut), seed)
    if spec.kind == "matcha":
        assert spec.budget is not None
        return Matcha(members, step, _draw_graph(spec.base, spec, members, seed, agent_count, cut), seed, spec.budget)
    return Static(members, step, _draw_graph(spec.kind, spec, members, seed, agent_count, cut))


def _draw_graph(kind: str, spec: Topology, members: Group, seed: int, agent_count: int, cut: Cut) -> UndirectedGraph:
    """The graph of a kind among the members, or induced from one among all agents; then links are cut."""
    cut = frozenset(link for link in cut if set(link) <= set(members))

    def overlay() -> Edges:
        return without(draw_edges(kind, members, spec, derive_seed(seed, "topology", *members)), cut)

    def cut_down() -> Edges:
        everyone = tuple(range(agent_count))
        return without(induced(draw_edges(kind, everyone, spec, derive_seed(seed, "topology")), members), cut)

    if kind == "complete":  # a complete graph cut down is complete
        return UndirectedGraph(members, overlay, is_complete=not cut)
    return UndirectedGraph(members, overlay if spec.scope == "overlay" else cut_down)


def _alone(ids: NDArray[np.int64]) -> MixingMatrix:
    return from_links(ids, stacked([]), np.empty(0))


def _all_pairs(members: Group) -> Edges:
    """int64[E, 2]: an edge between any two members."""
    first, second = np.triu_indices(len(members), 1)
    agents = np.array(members, np.int64)
    return np.stack([agents[first], agents[second]], axis=1)
