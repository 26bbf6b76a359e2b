"""Cuts a graph into few matchings by colouring its edges (Misra and Gries 1992): at most one more than its degree.

MATCHA activates such matchings one by one. Edges are coloured in their order, so the same graph is cut alike
everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.graphs import Edges


def matching_of_edges(edges: Edges, count: int) -> NDArray[np.int64]:
    """int64[E], the number of the matching 0 .. M - 1 that each edge is in; M is at most the largest degree plus 1.

    edges: between ranks 0 .. count - 1.
    """
    colouring = _Colouring(count, int(np.bincount(edges.ravel(), minlength=1).max()) + 1)
    pairs = list(zip(*edges.T.tolist(), strict=True))  # tuples, which the garbage collector leaves alone
    for u, v in pairs:
        colouring.add(u, v)
    colours = np.array([colouring.colour[u][v] for u, v in pairs], dtype=np.int64)
    return np.unique(colours, return_inverse=True)[1].astype(np.int64, copy=False)


class _Colouring:
    """A proper colouring of the edges so far. free: for each vertex the colours that no edge there has, as bits."""

    def __init__(self, count: int, colours: int):
        self.free = [(1 << colours) - 1] * count
        self.colour: list[dict[int, int]] = [{} for _ in range(count)]  # neighbour -> colour
        self.neighbour: list[dict[int, int]] = [{} for _ in range(count)]  # colour -> neighbour

    def add(self, u: int, v: int) -> None:
        """Colour a new edge, changing others where its ends have no free colour in common."""
        if common := self.free[u] & self.free[v]:
            self._paint(u, v, _lowest(common))
            return
        fan = self._fan(u, v)
        at_centre, at_end = _lowest(self.free[u]), _lowest(self.free[fan[-1]])
        self._swap_along_path(u, at_end, at_centre)
        last = 0  # the colours on the fan may have changed: it is one up to the first vertex where at_end is free
        while not self.free[fan[last]] >> at_end & 1:
            last += 1
        rotated = [self._clear(u, fan[k]) for k in range(1, last + 1)]
        for vertex, colour in zip(fan, [*rotated, at_end], strict=False):
            self._paint(u, vertex, colour)

    def _fan(self, u: int, v: int) -> list[int]:
        """v and neighbours of u, as many as can be: the edge from u to each has a colour that the one before lacks."""
        fan, left = [v], ~self.free[u]
        while useful := left & self.free[fan[-1]]:
            colour = _lowest(useful)
            left &= ~(1 << colour)
            fan.append(self.neighbour[u][colour])
        return fan

    def _swap_along_path(self, start: int, first: int, second: int) -> None:
        """Exchange two colours along the path from `start` whose edges have them in turn, `first` first."""
        path, old, new = [start], first, second
        while (following := self.neighbour[path[-1]].get(old)) is not None:
            self.colour[path[-1]][following] = self.colour[following][path[-1]] = new
            path.append(following)
            old, new = new, old
        for vertex in path[1:-1]:
            near = self.neighbour[vertex]
            near[first], near[second] = near[second], near[first]
        if len(path) > 1:
            for end, lost, won in ((start, first, second), (path[-1], new, old)):
                self.neighbour[end][won] = self.neighbour[end].pop(lost)
                self.free[end] ^= 1 << lost | 1 << won

    def _paint(self, u: int, v: int, colour: int) -> None:
        for here, there in ((u, v), (v, u)):
            self.colour[here][there] = colour
            self.neighbour[here][colour] = there
            self.free[here] &= ~(1 << colour)

    def _clear(self, u: int, v: int) -> int:
        """Take the colour of an edge away; returns it."""
        colour = self.colour[u][v]
        for here, there in ((u, v), (v, u)):
            del self.colour[here][there], self.neighbour[here][colour]
            self.free[here] |= 1 << colour
        return colour


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
