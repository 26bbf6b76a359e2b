"""Minimum cut: agents in parts of about equal cost between which as few bytes cross as can be found.

Finding the fewest is NP-hard. This is the usual way to come close (Karypis and Kumar 1998): agents that share most are
merged pair by pair until few are left, these are halved again and again, and while they are taken apart again, moves
of single vertices improve what was found. It is done several times from other random orders where that is quick.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parse_mpi.topology.hypergraph import Hypergraph
from parse_mpi.topology.refinement import Division

COARSEST = 80  # vertices, or so many for each part
PER_PART = 8
SHRUNK = 0.95  # merging ends where it leaves more than this share
STARTS = 4  # of a bisection


def nested_cut(
    graph: Hypergraph,
    nodes: Sequence[int],
    limit: int,
    draw: np.random.Generator,
    start: Sequence[int] | None = None,
) -> list[int]:
    """A rank for every vertex, by nodes first and then inside each node; what is found fits, or nearly.

    nodes: of each rank, 0, 1, ... limit: the cost that a rank may hold. start: a rank for every vertex to begin with.
    """
    ranks_on = [[rank for rank, its in enumerate(nodes) if its == node] for node in range(max(nodes) + 1)]
    half_full = (sum(graph.costs) / len(nodes) + limit) / 2  # leaves room to deal a node's vertices to its ranks
    limits = [limit if len(ranks) == 1 else int(len(ranks) * half_full) for ranks in ranks_on]
    node_start = None if start is None else [nodes[rank] for rank in start]
    node_of = _cut(graph, [len(ranks) for ranks in ranks_on], limits, draw, node_start).part
    rank_of = [0] * len(node_of)
    for node, ranks in enumerate(ranks_on):
        own = [v for v, its in enumerate(node_of) if its == node]
        inside = None
        if start is not None:
            inside = [ranks.index(start[v]) if nodes[start[v]] == node else 0 for v in own]
        within = _cut(graph.restricted(own), [1] * len(ranks), [limit] * len(ranks), draw, inside)
        for v, k in zip(own, within.part, strict=True):
            rank_of[v] = ranks[k]
    return rank_of


def _cut(
    graph: Hypergraph,
    shares: Sequence[int],
    limits: Sequence[int],
    draw: np.random.Generator,
    start: Sequence[int] | None,
) -> Division:
    if start is None and len(shares) > 1 and graph.costs:
        return divide(graph, shares, limits, draw)
    division = Division(graph, start or [0] * len(graph.costs), limits)
    division.improve()
    return division


def divide(graph: Hypergraph, shares: Sequence[int], limits: Sequence[int], draw: np.random.Generator) -> Division:
    """The vertices in parts that hold about these shares of all cost and no more than the limits.

    The limits may be exceeded where vertices of unequal cost do not fit (`Division.fits`).
    """
    levels, became = [graph], []
    enough = max(COARSEST, PER_PART * len(shares))
    largest = max(sum(graph.costs) // enough * 2, max(graph.costs))
    while len(levels[-1].costs) > enough:
        coarse, vertices = levels[-1].coarser(draw.permutation(len(levels[-1].costs)).tolist(), largest)
        if len(coarse.costs) > SHRUNK * len(levels[-1].costs):
            break
        levels.append(coarse)
        became.append(vertices)
    part = _halved(levels[-1], shares, draw)
    division = _improved(levels[-1], part, limits, len(levels) > 1)
    for k in range(len(became) - 1, -1, -1):
        part = [division.part[vertex] for vertex in became[k]]
        division = _improved(levels[k], part, limits, k > 0)
    return division


def _improved(graph: Hypergraph, part: Sequence[int], limits: Sequence[int], is_coarse: bool) -> Division:
    """A division at the limits or, where vertices stand for several agents, with room for one of them above."""
    room = max(graph.costs) if is_coarse else 0
    division = Division(graph, part, [limit + room for limit in limits])
    division.improve()
    return division


def _halved(graph: Hypergraph, shares: Sequence[int], draw: np.random.Generator) -> list[int]:
    """Part of every vertex: cut into two, of which each is cut into two, down to the parts."""
    if len(shares) == 1 or not graph.costs:
        return [0] * len(graph.costs)
    middle = len(shares) // 2
    side = _bisected(graph, sum(shares[:middle]) / sum(shares), draw)
    part = [0] * len(side)
    for which, own_shares, first in ((0, shares[:middle], 0), (1, shares[middle:], middle)):
        own = [v for v, s in enumerate(side) if s == which]
        for v, p in zip(own, _halved(graph.restricted(own), own_shares, draw), strict=True):
            part[v] = first + p
    return part


def _bisected(graph: Hypergraph, share: float, draw: np.random.Generator) -> list[int]:
    """Side 0 or 1 of every vertex; side 0 has about this share of the cost. The best of several starts."""
    total = sum(graph.costs)
    target = round(share * total)
    slack = max(total // 50, 1)
    limits = [target + slack, total - target + slack]
    found = []
    for first in draw.permutation(len(graph.costs))[:STARTS].tolist():
        division = Division(graph, _grown(graph, first, target), limits)
        division.improve()
        found.append(division)
    return min(found, key=lambda division: (not division.fits, division.cost)).part


def _grown(graph: Hypergraph, first: int, target: int) -> list[int]:
    """Side 0 grown from a vertex to the target, always by the one that shares most with it; the others are side 1."""
    side = [1] * len(graph.costs)
    pull = {first: 0}
    load = 0
    while load < target:
        left = pull or {v: 0 for v, s in enumerate(side) if s}
        if not left:
            break
        vertex = max(left, key=lambda v: (left[v], -v))
        pull.pop(vertex, None)
        if load and load + graph.costs[vertex] - target > target - load:
            break
        side[vertex] = 0
        load += graph.costs[vertex]
        for net in graph.nets_of[vertex]:
            for other in graph.pins[net]:
                if side[other]:
                    pull[other] = pull.get(other, 0) + graph.weights[net]
    return side
