"""Undirected graphs as edge lists, random matchings of them, and their connected components.

An edge list is int64[E, 2] of agent ids with i < j in each row and the rows in ascending order. Random matchings are
functions of the generator passed in; see slice_graph.py for what the seeds are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Group: TypeAlias = tuple[int, ...]
Edges: TypeAlias = NDArray[np.int64]
Pairs: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UndirectedGraph:
    """A graph among `members` (ascending ids), whose edges are listed when they are first asked for.

    is_complete: the answers then follow without the list, which would have half a million edges for 1,000 agents.
    """

    members: Group
    list_edges: Callable[[], Edges]
    is_complete: bool = False

    @cached_property
    def edges(self) -> Edges:
        """The edge list, read-only."""
        edges = self.list_edges()
        edges.flags.writeable = False
        return edges

    def degrees(self) -> NDArray[np.int64]:
        """int64[A], in the order of the members."""
        if self.is_complete:
            return np.full(len(self.members), len(self.members) - 1, dtype=np.int64)
        ends = np.searchsorted(np.array(self.members), self.edges)
        return np.bincount(ends.ravel(), minlength=len(self.members)).astype(np.int64, copy=False)

    def parts(self) -> list[Group]:
        """The connected components, largest first."""
        return [self.members] if self.is_complete else connected_components(self.members, self.edges)


def stacked(parts: Iterable[Pairs]) -> Pairs:
    """int64[E, 2], the pairs of all parts below each other; there may be no part."""
    return np.concatenate([np.empty((0, 2), dtype=np.int64), *parts])


def ordered(edges: Pairs) -> Edges:
    """The edge list of the same undirected edges, given in any order and direction; loops and repetitions are dropped.

    Ids are at least 0.
    """
    low, high = np.sort(edges[edges[:, 0] != edges[:, 1]], axis=1).T
    size = high.max(initial=0) + 1
    keys = np.sort(low * size + high)  # np.unique would hash, five times slower
    return np.stack(np.divmod(keys[np.diff(keys, prepend=-1) > 0], size), axis=1).astype(np.int64, copy=False)


def induced(edges: Edges, members: Group) -> Edges:
    """The edges that have both ends among `members`."""
    return edges[np.isin(edges, members).all(axis=1)]


def without(edges: Edges, cut: Collection[tuple[int, int]]) -> Edges:
    """The edges that are not among the links (i, j), i < j, in `cut`."""
    if not cut:
        return edges
    size = edges.max(initial=0) + 1
    gone = [i * size + j for i, j in cut if j < size]
    return edges[~np.isin(edges[:, 0] * size + edges[:, 1], gone)]


def complete_matching(members: Group, generator: np.random.Generator) -> Edges:
    """int64[A // 2, 2], a uniform maximal matching of the complete graph: everyone paired, an odd one out left idle."""
    pairs = generator.permutation(np.array(members, dtype=np.int64))[: len(members) // 2 * 2].reshape(-1, 2)
    return ordered(pairs)


def greedy_matching(edges: Edges, generator: np.random.Generator) -> NDArray[np.int64]:
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


def connected_components(members: Group, edges: Edges) -> list[Group]:
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
