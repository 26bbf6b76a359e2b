"""The graph among the holders of some slices: who mixes with whom, in which round, with which weights.

Holders may be cut into groups (for example agents with the same modality set) that mix inside only. Everything here
is a function of the job's seed and of who the members of a group are: slices with the same holders get the same
links, every rank draws the same schedule, and nothing is negotiated (docs/method.md, section 1.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parse_mpi import job
from parse_mpi.seeding import derive_seed, stream
from parse_mpi.topology import graphs, spectral
from parse_mpi.topology.mixing import MixingMatrix, metropolis

Group = tuple[int, ...]
SAMPLED_ROUNDS = 500
SAMPLED_AGENTS = 100  # up to so many a sample is quick and better than its stand-in, beyond it is neither


@dataclass(frozen=True)
class SliceGraph:
    """One graph among the holders of some slices; `slice_graph` makes one.

    groups: disjoint tuples of ascending agent ids. overlay: each group has a graph of the kind among its members in
    the order of their ids. induced: one graph among agents 0 .. agent_count - 1 is cut down to each group.
    """

    name: str
    groups: tuple[Group, ...]
    spec: job.Topology
    seed: int
    agent_count: int

    @cached_property
    def agents(self) -> tuple[int, ...]:
        """All holders, ascending."""
        return tuple(sorted(agent for group in self.groups for agent in group))

    @property
    def static(self) -> bool:
        """Whether every round has the same graph."""
        return self.spec.kind != "random-gossip"

    def at(self, round_index: int) -> MixingMatrix:
        """The mixing matrix of a round: Metropolis weights on the static graph, or on that round's random matching.

        A static graph returns the same object every round. A gossip round is drawn afresh for each group from
        (seed, members, round): a maximal matching of the base graph, whose pairs average.
        """
        if self.static:
            return self._static_matrix
        pairs = _stack(self._matching(group, round_index) for group in self.groups)
        return metropolis(_array(self.agents), pairs)

    def union_edges(self) -> NDArray[np.int64]:
        """int64[E, 2], i < j, rows ascending: every edge that some round may use (for gossip, the base graph's)."""
        return self._union_edges

    def degrees(self) -> NDArray[np.int64]:
        """int64[A], degrees in the union graph, in the order of `agents`."""
        if self._kind == "complete":
            size = {agent: len(group) for group in self.groups for agent in group}
            return np.array([size[agent] - 1 for agent in self.agents], dtype=np.int64)
        ends = np.searchsorted(_array(self.agents), self.union_edges())
        return np.bincount(ends.ravel(), minlength=len(self.agents)).astype(np.int64, copy=False)

    def components(self) -> list[Group]:
        """Connected components of the union graph over all groups, largest first, then by lowest id."""
        parts = [part for group in self.groups for part in self._parts(group)]
        return sorted(parts, key=lambda part: (-len(part), part))

    def disconnected_groups(self) -> list[tuple[Group, list[Group]]]:
        """The groups that fall apart, each with its components, largest first."""
        return [(group, parts) for group in self.groups if len(parts := self._parts(group)) > 1]

    def spectral_gap(self) -> float:
        """The smallest gap among the groups of two or more agents; nan if there is none, 0 if one falls apart.

        Static graphs: 1 - rho, rho the second largest absolute eigenvalue of W, per round and distance to the mean.
        Gossip: 1 - lambda_2(E[W^T W]), per round and *squared* distance; exact on complete and ring bases. Otherwise
        E is the mean over the run's first 500 rounds, and beyond 100 agents that of matchings of a tree with the same
        degrees (either is a few per cent off at most).
        """
        return min((self._gap(group) for group in self.groups if len(group) > 1), default=float("nan"))

    @property
    def _kind(self) -> graphs.GraphKind:
        """The kind of the union graph."""
        return self.spec.base if self.spec.kind == "random-gossip" else self.spec.kind

    @cached_property
    def _static_matrix(self) -> MixingMatrix:
        return metropolis(_array(self.agents), self.union_edges())

    @cached_property
    def _union_edges(self) -> NDArray[np.int64]:
        edges = graphs.ordered(_stack(self._edges.values()))
        edges.flags.writeable = False
        return edges

    @cached_property
    def _edges(self) -> dict[Group, NDArray[np.int64]]:
        """The union graph's edge list of each group."""
        return {group: self._draw_edges(group) for group in self.groups}

    def _draw_edges(self, group: Group) -> NDArray[np.int64]:
        kind, probability = self._kind, self.spec.probability
        if self.spec.scope == "overlay" or kind == "complete":  # a complete graph cut down is complete
            return graphs.draw_edges(kind, group, probability, derive_seed(self.seed, "topology", *group))
        everyone = tuple(range(self.agent_count))
        whole = graphs.draw_edges(kind, everyone, probability, derive_seed(self.seed, "topology"))
        return graphs.induced(whole, group)

    @cached_property
    def _gossip_seeds(self) -> dict[Group, int]:
        return {group: derive_seed(self.seed, "gossip", *group) for group in self.groups}

    def _matching(self, group: Group, round_index: int) -> NDArray[np.int64]:
        """int64[M, 2], the pairs of a group that meet in this round."""
        generator = stream(self._gossip_seeds[group], "round", round_index)
        if self._kind == "complete":  # without listing its edges
            return graphs.complete_matching(group, generator)
        edges = self._edges[group]
        return edges[graphs.greedy_matching(edges, generator)]

    def _parts(self, group: Group) -> list[Group]:
        if self._kind == "complete":
            return [group]
        return graphs.connected_components(group, self._edges[group])

    def _gap(self, group: Group) -> float:
        """The spectral gap of one group of at least two agents."""
        if len(self._parts(group)) > 1:
            return 0.0
        if self.static:
            alone = len(self.groups) == 1
            matrix = self._static_matrix if alone else metropolis(_array(group), self._edges[group])
            return spectral.metropolis_gap(matrix)
        if self._kind == "complete":
            return spectral.complete_matching_gap(len(group))
        degrees = np.unique(self._edges[group], return_counts=True)[1]
        if (degrees == 2).all():  # connected, so a ring, whatever kind it was drawn as
            return spectral.ring_matching_gap(len(group))
        if len(group) > SAMPLED_AGENTS:
            return spectral.tree_matching_gap(_array(group), self._edges[group])
        matchings = [self._matching(group, round_index) for round_index in range(SAMPLED_ROUNDS)]
        return spectral.sampled_matching_gap(_array(group), matchings)


def slice_graph(
    name: str, groups: Iterable[Iterable[int]], spec: job.Topology, seed: int, agent_count: int
) -> SliceGraph:
    """The graph called `name` among the holders in `groups`, in any order.

    Raises ValueError unless the groups are disjoint, not empty, and made of ids 0 .. agent_count - 1.
    """
    sorted_groups = tuple(tuple(sorted(group)) for group in groups)
    holders = [agent for group in sorted_groups for agent in group]
    if len(set(holders)) != len(holders):
        raise ValueError(f"graph {name}: an agent is in two groups, or twice in one")
    if not all(sorted_groups) or not set(holders) <= set(range(agent_count)):
        raise ValueError(f"graph {name}: a group is empty or has an id outside 0 .. {agent_count - 1}")
    return SliceGraph(name, sorted_groups, spec, seed, agent_count)


def _array(agents: Group) -> NDArray[np.int64]:
    return np.array(agents, dtype=np.int64)


def _stack(edges: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *edges])
