"""The undirected kinds of graphs: from a kind and its keys to the edges among a group's members.

A generator returns edges between ranks 0 .. count - 1 in any order and direction, repetitions and loops allowed:
`draw_edges` makes an edge list of ids of them. Random kinds are functions of the seed passed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from parse_mpi.job import Topology
from parse_mpi.topology.graphs import Edges, Group, Pairs, ordered, stacked


@lru_cache(maxsize=8)  # several slices often have the same holders
def draw_edges(kind: str, members: Group, spec: Topology, seed: int) -> Edges:
    """int64[E, 2], read-only: the edge list of a graph of `kind` among `members` (ascending ids).

    Agents stand in the order of their ids. Random kinds are drawn from `seed`, connected or not. spec: the keys of
    the kind, which may be spec.kind or spec.base.
    """
    ranks = GENERATORS[kind](len(members), spec, seed)
    edges = np.array(members, dtype=np.int64)[ordered(ranks)]
    edges.flags.writeable = False
    return edges


def exponential_hops(count: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `count`: ceil(log2 count) of them."""
    return tuple(1 << power for power in range((count - 1).bit_length()))


def _circulant(count: int, hops: Iterable[int]) -> Pairs:
    """Each rank i to i + hop."""
    start = np.arange(count)
    return stacked(np.stack([start, (start + hop) % count], axis=1) for hop in hops)


def _ring(count: int, spec: Topology, seed: int) -> Pairs:
    """The last one next to the first; two members share one edge."""
    return _circulant(count, [1])


def _chordal_ring(count: int, spec: Topology, seed: int) -> Pairs:
    """A ring in which each rank has a chord to the opposite one; of an odd number, to both of the two farthest."""
    return _circulant(count, [1, count // 2])


def _torus(count: int, spec: Topology, seed: int) -> Pairs:
    """rows x columns, as near to a square as the divisors of the count allow; a prime number makes a ring."""
    rows = max(divisor for divisor in range(1, math.isqrt(count) + 1) if count % divisor == 0)
    grid = np.arange(count).reshape(rows, -1)
    return stacked(np.stack([grid, np.roll(grid, -1, axis)], axis=-1).reshape(-1, 2) for axis in (0, 1))


def _star(count: int, spec: Topology, seed: int) -> Pairs:
    """The lowest id is the hub."""
    return np.stack([np.zeros(count, dtype=np.int64), np.arange(count)], axis=1)


def _complete(count: int, spec: Topology, seed: int) -> Pairs:
    return np.stack(np.triu_indices(count, k=1), axis=1)


def _exponential(count: int, spec: Topology, seed: int) -> Pairs:
    return _circulant(count, exponential_hops(count))


def _erdos_renyi(count: int, spec: Topology, seed: int) -> Pairs:
    """The edges that networkx.fast_gnp_random_graph draws (Batagelj and Brandes 2005), without its graph.

    All pairs stand in a line, (1, 0), (2, 0), (2, 1), (3, 0), …; the gaps between edges are geometric.
    """
    assert spec.probability is not None
    pairs = count * (count - 1) // 2
    if spec.probability == 1.0:
        positions = list(range(pairs))
    else:
        uniform, log_absent, positions = random.Random(seed).random, math.log(1.0 - spec.probability), []
        position = int(math.log(1.0 - uniform()) / log_absent)
        while position < pairs:
            positions.append(position)
            position += 1 + int(math.log(1.0 - uniform()) / log_absent)
    line = np.array(positions, dtype=np.int64)
    row_starts = np.cumsum(np.arange(count))
    upper = np.searchsorted(row_starts, line, side="right")
    return np.stack([line - row_starts[upper - 1], upper], axis=1)


def _random_regular(count: int, spec: Topology, seed: int) -> Pairs:
    """Among few holders all others; one degree less where an odd number of holders can't have an odd degree.

    A dense graph is what a sparse one leaves of all pairs, as networkx would search for it for minutes.
    """
    import networkx

    assert spec.degree is not None
    degree = min(spec.degree, count - 1)
    degree -= count * degree % 2
    if degree <= count // 2:
        return _edges_of(networkx.random_regular_graph(degree, count, seed))
    return _edges_of(networkx.complement(networkx.random_regular_graph(count - 1 - degree, count, seed)))


def _small_world(count: int, spec: Topology, seed: int) -> Pairs:
    """Watts and Strogatz 1998; complete among no more holders than the degree."""
    import networkx

    assert spec.degree is not None
    assert spec.probability is not None
    return _edges_of(networkx.watts_strogatz_graph(count, min(spec.degree, count), spec.probability, seed))


def _edge_list(count: int, spec: Topology, seed: int) -> Pairs:
    """The edges of the job among the agents that it has: ranks are ids, as an edge list is drawn among all agents."""
    assert spec.edges is not None
    edges = np.array(spec.edges, dtype=np.int64)
    return edges[(edges < count).all(axis=1)]


def _edges_of(graph: Any) -> Pairs:
    return np.array(graph.edges, dtype=np.int64).reshape(-1, 2)


GENERATORS: Mapping[str, Callable[[int, Topology, int], Pairs]] = {
    "ring": _ring,
    "chordal-ring": _chordal_ring,
    "torus": _torus,
    "star": _star,
    "complete": _complete,
    "erdos-renyi": _erdos_renyi,
    "random-regular": _random_regular,
    "small-world": _small_world,
    "edge-list": _edge_list,
    "static-exponential": _exponential,
}
