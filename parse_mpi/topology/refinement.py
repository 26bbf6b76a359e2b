"""Moves that make parts of a hypergraph cheaper, after Fiduccia and Mattheyses (1982), among any number of parts.

A pass moves the vertex that gains most, also where that is a loss, and in the end goes back to the best that it came
across. A move may overfill one part, which then has to give up a vertex next: chains of such moves are the swaps by
which parts of exactly equal size get better.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace

from parse_mpi.topology.hypergraph import LARGE_NET, Hypergraph

PASSES = 8
PATIENCE = 60  # moves of a pass without a new best, and one more for every 20 vertices
NEVER = 1 << 62

Move = tuple[int, int, int]  # (-gain, vertex, to)


class Division:
    """Vertices in parts. part: of every vertex. limits: the cost that each part may hold."""

    def __init__(self, graph: Hypergraph, part: Sequence[int], limits: Sequence[int]):
        self.graph, self.part, self.limits = graph, list(part), list(limits)
        self.load, self.size = [0] * len(limits), [0] * len(limits)
        for cost, p in zip(graph.costs, self.part, strict=True):
            self.load[p] += cost
            self.size[p] += 1
        self._counts: list[dict[int, int]] = []  # of each net, its vertices by part
        # Of each vertex, the weight of its nets that its part keeps when it leaves, and of those that touch each part.
        self._held = [0] * len(self.part)
        self._shared: list[dict[int, int]] = [{} for _ in self.part]
        for pins, weight in zip(graph.pins, graph.weights, strict=True):
            count: dict[int, int] = {}
            for vertex in pins:
                count[self.part[vertex]] = count.get(self.part[vertex], 0) + 1
            for vertex in pins:
                shared = self._shared[vertex]
                for p in count:
                    shared[p] = shared.get(p, 0) + weight
                if count[self.part[vertex]] > 1:
                    self._held[vertex] += weight
            self._counts.append(count)

    @property
    def cost(self) -> int:
        """What crosses between the parts."""
        return sum(w * (len(count) - 1) for w, count in zip(self.graph.weights, self._counts, strict=True))

    @property
    def fits(self) -> bool:
        """Whether every part has somebody and no part holds more than it may."""
        return all(self.size) and not self._overfull(range(len(self.size)))

    def improve(self) -> None:
        """Bring all parts within their limits, as far as that goes, then move on until a pass gains nothing."""
        self._repair()
        for _ in range(PASSES):
            if not self._pass():
                break

    def move(self, vertex: int, to: int) -> set[int]:
        """Move a vertex to another part; returns those whose gains that may have changed."""
        own, cost = self.part[vertex], self.graph.costs[vertex]
        self.part[vertex] = to
        self.load[own] -= cost
        self.load[to] += cost
        self.size[own] -= 1
        self.size[to] += 1
        touched: set[int] = set()
        for net in self.graph.nets_of[vertex]:
            pins, weight, count = self.graph.pins[net], self.graph.weights[net], self._counts[net]
            left, there = count[own] - 1, count.get(to, 0)
            count[own], count[to] = left, there + 1
            self._held[vertex] += weight * ((there > 0) - (left > 0))
            if left == 0:
                del count[own]
                for u in pins:
                    self._shared[u][own] -= weight
            elif left == 1:  # the one that is left there would take the net along
                last = next(u for u in pins if self.part[u] == own)
                self._held[last] -= weight
                touched.add(last)
            if there == 0:
                for u in pins:
                    shared = self._shared[u]
                    shared[to] = shared.get(to, 0) + weight
            elif there == 1:
                first = next(u for u in pins if self.part[u] == to and u != vertex)
                self._held[first] += weight
                touched.add(first)
            if (left == 0 or there == 0) and len(pins) <= LARGE_NET:
                touched.update(pins)
        return touched

    def gain(self, vertex: int, to: int) -> int:
        """What less would cross with a vertex in another part."""
        return self._shared[vertex].get(to, 0) - self._held[vertex]

    def _overfull(self, parts: Sequence[int]) -> list[int]:
        return [p for p in parts if self.load[p] > self.limits[p]]

    def _best_move(self, vertex: int, room: int = 0) -> Move | None:
        """To a part that nets of the vertex touch and that has so much room; ties go to the emptiest part."""
        own = self.part[vertex]
        if self.size[own] == 1:
            return None
        best, to, load = -NEVER, -1, self.load
        for p, shared in self._shared[vertex].items():
            if (
                shared
                and p != own
                and load[p] + room <= self.limits[p]
                and (shared > best or (shared == best and (load[p], p) < (load[to], to)))
            ):
                best, to = shared, p
        return (self._held[vertex] - best, vertex, to) if to >= 0 else None

    # -- one pass ----------------------------------------------------------------------------------------------------

    def _pass(self) -> bool:
        """Move vertices, each once at most, then take back what came after the best; whether anything is left of it."""
        heaps = self._heaps()
        moved: dict[int, int] = {}  # vertex -> the part that it came from, in the order of moves
        overfull = self._overfull(range(len(self.load)))
        gained, best, best_length = 0, -NEVER if overfull else 0, 0
        patience = PATIENCE + len(self.part) // 20
        while len(moved) - best_length < patience and (found := self._next(heaps, moved, overfull)):
            loss, vertex, to = found
            moved[vertex] = self.part[vertex]
            for u in sorted(self.move(vertex, to)):
                if u not in moved and (move := self._best_move(u)):
                    heappush(heaps[self.part[u]], move)
            gained -= loss
            overfull = self._overfull(sorted({*overfull, to}))
            if gained > best and not overfull:
                best, best_length = gained, len(moved)
        for vertex, origin in reversed(list(moved.items())[best_length:]):
            self.move(vertex, origin)
        return best_length > 0

    def _heaps(self) -> list[list[Move]]:
        """The best move of every vertex that has neighbours elsewhere, by the part that it leaves."""
        heaps: list[list[Move]] = [[] for _ in self.limits]
        for vertex, own in enumerate(self.part):
            if move := self._best_move(vertex):
                heaps[own].append(move)
        for heap in heaps:
            heapify(heap)
        return heaps

    def _next(self, heaps: list[list[Move]], moved: dict[int, int], overfull: list[int]) -> Move | None:
        """The move that gains most, out of a part that is overfull if one is."""
        while filled := [p for p in (overfull or range(len(heaps))) if heaps[p]]:
            own = min(filled, key=lambda p: heaps[p][0])
            known = heaps[own][0]
            vertex = known[1]
            if vertex in moved or self.part[vertex] != own or not (move := self._best_move(vertex)):
                heappop(heaps[own])
            elif move != known:  # what it gains has changed since it was put there
                heapreplace(heaps[own], move)
            else:
                return move
        return None

    # -- limits ------------------------------------------------------------------------------------------------------

    def _repair(self) -> None:
        """Move vertices into empty parts and out of overfull ones, those that lose least, where they find room."""
        for p in [p for p, size in enumerate(self.size) if not size]:
            givers = [v for v, own in enumerate(self.part) if self.size[own] > 1]
            if givers:
                self.move(max(givers, key=lambda v: (self.gain(v, p), -v)), p)
        while overfull := self._overfull(range(len(self.load))):
            emptiest = min(range(len(self.load)), key=lambda p: self.load[p] - self.limits[p])
            ways = (self._way_out(v, emptiest) for v, own in enumerate(self.part) if own in overfull)
            if not (moves := [move for move in ways if move]):
                return
            _, vertex, to = min(moves)
            self.move(vertex, to)

    def _way_out(self, vertex: int, emptiest: int) -> Move | None:
        """The best move of a vertex to a part that has room for it; without a neighbour there, to the emptiest."""
        cost = self.graph.costs[vertex]
        if move := self._best_move(vertex, room=cost):
            return move
        if self.size[self.part[vertex]] > 1 and self.load[emptiest] + cost <= self.limits[emptiest]:
            return -self.gain(vertex, emptiest), vertex, emptiest
        return None
