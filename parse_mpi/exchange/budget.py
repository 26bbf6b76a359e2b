"""A bounded payload per link: columns of slices take turns, so that no link carries more bytes a round than it may.

What a link carries follows from the graphs that it belongs to in that round (its load), the round and the weights of
slices, all of which both ends know without asking. Of a slice with width P and share s, s consecutive columns travel,
the last followed by the first. Shares add up to the budget: `rotation` makes them proportional to P, so that all
columns travel equally often; `priority` to P times the slice's consensus distance when it was last measured. What
waits stays with both ends (see Lane).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from parse_mpi.exchange.lanes import Lane, Window
from parse_mpi.plan import Plan
from parse_mpi.topology.mixing import MixingMatrix
from parse_mpi.topology.slice_graph import SliceGraph

Load = tuple[str, ...]  # the graphs that a link carries together
Shares = Mapping[str, float]  # columns that travel in a turn, on average, by slice
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 times the golden ratio's fraction
LEAST_WEIGHT = 1 / 64  # of the largest, so that every slice gets its turn in the end


class Budget:
    """Divides every link's bytes among the slices that it carries; equal on all ranks.

    weights: how urgent each slice is, by name; 1 where it is not listed.
    """

    def __init__(self, plan: Plan, budget_bytes: int):
        self.columns = budget_bytes // plan.item_bytes
        self.graphs = list(plan.graphs.values())
        self.widths = {
            graph.name: {s.name: plan.travelling(s.name) for s in plan.slices if s.graph == graph.name}
            for graph in self.graphs
        }
        self.weights: dict[str, float] = {}
        self._round = -1
        self._lanes: dict[str, list[Lane]] = {}
        self._matrices: dict[str, MixingMatrix] = {}
        self._parts: dict[str, dict[Load, MixingMatrix]] = {}

    def schedule(self, graph: SliceGraph) -> GraphBudget:
        """The schedule of one graph within this budget."""
        return GraphBudget(self, graph)

    def reweigh(self, distances: Mapping[tuple[str, tuple[int, ...]], float]) -> None:
        """From the next round on, slices whose holders differ more are more urgent.

        distances: consensus distance by slice and component; the largest of a slice counts.
        """
        known: dict[str, float] = {}
        for (name, _), distance in distances.items():
            known[name] = max(distance, known.get(name, 0.0))
        if largest := max(known.values(), default=0.0):
            # In steps of 2^(1/4), so that the last bits of a distance seldom decide.
            steps = {name: round(4 * math.log2(max(d / largest, LEAST_WEIGHT))) for name, d in known.items()}
            self.weights = {name: 2.0 ** (step / 4) for name, step in steps.items()}

    def lanes(self, graph: SliceGraph, round_index: int) -> list[Lane]:
        """The lanes of a graph in a round."""
        if round_index != self._round:
            parts = self._by_load(round_index)
            shares = {load: self._shares(load) for loads in parts.values() for load in loads}
            self._lanes = {g.name: self._lanes_of(g, parts[g.name], shares, round_index) for g in self.graphs}
            self._round = round_index
        return self._lanes[graph.name]

    def _lanes_of(
        self, graph: SliceGraph, parts: Mapping[Load, MixingMatrix], shares: Mapping[Load, Shares], round_index: int
    ) -> list[Lane]:
        """A lane for each load; one for all where whole rows fit everywhere or the graph is directed.

        In a directed graph what W leaves out in one direction is not balanced by the other: a column must travel over
        all links or none for its matrix to be doubly stochastic, so the busiest links decide.
        """
        if not parts:
            return []
        turn = round_index // (graph.phases or 1)  # counts the rounds in which a link of the graph is used
        widths = self.widths[graph.name]
        least = {name: min(shares[load][name] for load in parts) for name in widths}
        if graph.directed or least == widths:
            return [Lane(self._matrices[graph.name], _windows(widths, least, turn))]
        return [Lane(matrix, _windows(widths, shares[load], turn)) for load, matrix in parts.items()]

    def _shares(self, load: Load) -> Shares:
        """In proportion to weight and width, at most the width, and no more than the budget in all."""
        widths = {name: width for graph in load for name, width in self.widths[graph].items()}
        if sum(widths.values()) <= self.columns:
            return {name: float(width) for name, width in widths.items()}
        shares: dict[str, float] = {}
        left = float(self.columns - len(widths))  # rounding to whole columns takes up to one each
        wanted = {name: width * self.weights.get(name, 1.0) for name, width in widths.items()}
        while True:
            total = sum(wanted.values())
            made = {name: left * want / total for name, want in wanted.items()}
            full = [name for name, share in made.items() if share >= widths[name]]
            if not full:
                return shares | made
            for name in full:
                del wanted[name]
                shares[name] = float(widths[name])
                left -= shares[name]

    def _by_load(self, round_index: int) -> dict[str, dict[Load, MixingMatrix]]:
        """Graph -> load -> the entries of links with that load."""
        matrices = {graph.name: graph.at(round_index) for graph in self.graphs}
        if any(matrices[name] is not self._matrices.get(name) for name in matrices):
            self._matrices, self._parts = matrices, split_by_load(matrices)
        return self._parts


class GraphBudget:
    """The lanes of one graph within the budget of all."""

    def __init__(self, budget: Budget, graph: SliceGraph):
        self._budget = budget
        self._graph = graph

    def turn(self, round_index: int) -> int:
        """Every round is one of the graph's."""
        return round_index

    def lanes(self, round_index: int) -> list[Lane]:
        """The lanes of a round."""
        return self._budget.lanes(self._graph, round_index)

    def waiting(self, round_index: int) -> dict[str, int]:
        """Numbers that would have travelled without a budget and stay behind, over all links, by slice."""
        lanes = self.lanes(round_index)
        links = sum(len(lane.matrix.neighbours) for lane in lanes)
        left = {name: links * width for name, width in self._budget.widths[self._graph.name].items()}
        for lane in lanes:
            for name, start, stop in lane.windows:
                left[name] -= len(lane.matrix.neighbours) * (stop - start)
        return left


def _windows(widths: Mapping[str, int], shares: Shares, turn: int) -> tuple[Window, ...]:
    """The columns of slices that travel in a turn.

    Each turn begins a golden section of the width further. If it began where the last one ended, a share that changes
    with a link's load would pass some columns by for ever. This way none waits longer than 2 P / s turns, s being the
    smallest share that occurs.
    """
    place = turn * GOLDEN % 2**64 / 2**64
    windows: list[Window] = []
    for name, width in widths.items():
        if shares[name] >= width:
            windows.append((name, 0, width))
            continue
        start, stop = math.floor(place * width), math.floor(place * width + shares[name])
        pieces = [(start, min(stop, width)), (0, stop - width)]
        windows += [(name, first, last) for first, last in pieces if last > first]
    return tuple(windows)


def split_by_load(matrices: Mapping[str, MixingMatrix]) -> dict[str, dict[Load, MixingMatrix]]:
    """Cut matrices by name into the entries of links that carry the same matrices, in one direction or the other."""
    size = 1 + max((int(m.agents.max(initial=0)) for m in matrices.values()), default=0)
    keys = {name: _pair_keys(matrix, size) for name, matrix in matrices.items()}
    pairs = np.unique(np.concatenate([np.empty(0, np.int64), *keys.values()]))
    place = {name: np.searchsorted(pairs, key) for name, key in keys.items()}
    carried = np.zeros((len(matrices), len(pairs)), bool)
    load = np.zeros(len(pairs), np.int64)  # the number of the pair's load
    for here, index in zip(carried, place.values(), strict=True):
        here[index] = True
        load = np.unique(2 * load + here, return_inverse=True)[1]
    examples = np.unique(load, return_index=True)[1]
    members = [tuple(np.array(list(matrices))[carried[:, pair]].tolist()) for pair in examples]
    return {
        name: {members[k]: _entries(matrix, load[place[name]] == k) for k in np.unique(load[place[name]]).tolist()}
        for name, matrix in matrices.items()
    }


def _pair_keys(matrix: MixingMatrix, size: int) -> NDArray[np.int64]:
    """A number for the pair of agents of every entry, the same for both directions."""
    pairs = np.sort(matrix.links(), axis=1)
    return pairs[:, 0] * size + pairs[:, 1]


def _entries(matrix: MixingMatrix, keep: NDArray[np.bool_]) -> MixingMatrix:
    """The matrix with some entries only; what is left out stays on the diagonal."""
    starts = np.concatenate([[0], np.cumsum(keep)])[matrix.starts]
    return MixingMatrix(matrix.agents, starts, matrix.neighbours[keep], matrix.weights[keep])
