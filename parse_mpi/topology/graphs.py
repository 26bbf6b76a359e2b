"""Undirected graphs as edge lists, random matchings of them, and their connected components.

An edge list is int64[E, 2] of agent ids with i < j in each row and the rows in ascending order. Random graphs and
matchings are functions of the seed or generator passed in; see slice_graph.py for what the seeds are made of.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

GraphKind = Literal["ring", "erdos-renyi", "complete"]


@lru_cache(maxsize=8)  # several slices often have the same holders
def draw_edges(kind: GraphKind, members: tuple[int, ...], probability: float | None, seed: int) -> NDArray[np.int64]:
    """int64[E, 2], read-only: the edges of a graph of `kind` among `members` (ascending ids).

    ring: neighbours by rank in `members`, the last one next to the first; two members share one edge.
    erdos-renyi: each pair with `probability`, drawn once from `seed`, whether the graph is connected or not.
    """
    count = len(members)
    if kind == "complete":
        ranks = np.stack(np.triu_indices(count, k=1), axis=1)
    elif kind == "ring":
        ranks = _ring(count)
    else:
        assert probability is not None
        ranks = _erdos_renyi(count, probability, seed)
    edges = np.array(members, dtype=np.int64)[ordered(ranks)]
    edges.flags.writeable = False
    return edges


def _ring(count: int) -> NDArray[np.int64]:
    """int64[E, 2], 0 - 1 - ... - (count - 1) - 0, the closing edge only where it is a new one."""
    start = np.arange(count if count > 2 else count - 1)
    return np.stack([start, (start + 1) % count], axis=1)


def _erdos_renyi(count: int, probability: float, seed: int) -> NDArray[np.int64]:
    """int64[E, 2], the edges that networkx.fast_gnp_random_graph draws (Batagelj and Brandes 2005), without its graph.

    All pairs stand in a line, (1, 0), (2, 0), (2, 1), (3, 0), …; the gaps between edges are geometric.
    """
    pairs = count * (count - 1) // 2
    if probability == 1.0:
        positions = list(range(pairs))
    else:
        uniform, log_absent, positions = random.Random(seed).random, math.log(1.0 - probability), []
        position = int(math.log(1.0 - uniform()) / log_absent)
        while position < pairs:
            positions.append(position)
            position += 1 + int(math.log(1.0 - uniform()) / log_absent)
    line = np.array(positions, dtype=np.int64)
    row_starts = np.cumsum(np.arange(count))
    upper = np.searchsorted(row_starts, line, side="right")
    return np.stack([line - row_starts[upper - 1], upper], axis=1)


def ordered(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same undirected edges as an edge list: i < j in each row, rows ascending."""
    edges = np.sort(edges, axis=1)
    return edges[np.lexsort((edges[:, 1], edges[:, 0]))]


def induced(edges: NDArray[np.int64], members: tuple[int, ...]) -> NDArray[np.int64]:
    """The edges that have both ends among `members`."""
    return edges[np.isin(edges, members).all(axis=1)]


def complete_matching(members: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.int64]:
    """int64[A // 2, 2], a uniform maximal matching of the complete graph: everyone paired, an odd one out left idle."""
    pairs = generator.permutation(np.array(members, dtype=np.int64))[: len(members) // 2 * 2].reshape(-1, 2)
    return ordered(pairs)


def greedy_matching(edges: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """int64[M] ascending positions in `edges`: a maximal matching, taking edges greedily in a uniformly random order.

    Vectorised: an edge that comes before all edges it touches is taken by the greedy walk whatever else happens. So
    all such edges near the head of the order are taken at once, what they touch leaves the order, and so on.
    """
    order = generator.permutation(len(edges))
    free = np.ones(edges.max(initial=-1) + 1, dtype=np.bool_)
    taken = [order[:0]]
    while len(order):
        head = order[: len(free)]
        ends, turn = edges[head], np.arange(len(head))[:, None]
        first_turn = np.full(len(free), len(head))
        np.minimum.at(first_turn, ends, turn)
        is_first = (first_turn[ends] == turn).all(axis=1)
        taken.append(head[is_first])
        free[ends[is_first]] = False
        order = order[free[edges[order, 0]] & free[edges[order, 1]]]
    return np.sort(np.concatenate(taken))


def connected_components(members: tuple[int, ...], edges: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """The connected components as ascending ids, largest first, equally large ones by their lowest id."""
    ids = np.array(members, dtype=np.int64)
    left, right = np.searchsorted(ids, edges).T
    labels = np.arange(len(ids))
    while True:
        lowest = labels.copy()
        np.minimum.at(lowest, left, labels[right])
        np.minimum.at(lowest, right, labels[left])
        lowest = lowest[lowest]  # a label is the rank of a member of the same component: jump to that one's label
        if (lowest == labels).all():
            break
        labels = lowest
    parts = (tuple(ids[labels == label].tolist()) for label in np.unique(labels))
    return sorted(parts, key=lambda part: (-len(part), part))
