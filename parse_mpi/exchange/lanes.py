"""Lanes: which columns of which slices cross which edges of a graph in one round."""

from __future__ import annotations

from dataclasses import dataclass

from parse_mpi.plan import Plan
from parse_mpi.topology.mixing import MixingMatrix
from parse_mpi.topology.slice_graph import SliceGraph

Window = tuple[str, int, int]  # a slice, and the half-open range of its columns


@dataclass(frozen=True, eq=False)
class Lane:
    """Edges that carry the same columns: a mixing matrix, and the windows of columns that travel.

    Mixing in the residual form needs the entries of its edges only: what an edge does not carry this round stays with
    its two ends, so that the matrix of every column is doubly stochastic whatever is left out symmetrically.
    """

    matrix: MixingMatrix
    windows: tuple[Window, ...]

    @property
    def width(self) -> int:
        """Columns of all windows together."""
        return sum(stop - start for _, start, stop in self.windows)


class WholeRows:
    """The plain schedule of a graph: every edge carries the whole rows of all slices that are due.

    every: no slice mixes more often; the graph then counts those rounds alone, or some of a cycle would never come.
    """

    def __init__(self, plan: Plan, graph: SliceGraph):
        self.graph = graph
        self.slices = [(s.every, (s.name, 0, plan.travelling(s.name))) for s in plan.slices if s.graph == graph.name]
        self.every = min(every for every, _ in self.slices)

    def turn(self, round_index: int) -> int:
        """The round of the graph, counted from 0, that a round is in which slices are due."""
        return (round_index + 1) // self.every - 1

    def lanes(self, round_index: int) -> list[Lane]:
        """The lanes of a round; none where no slice is due."""
        windows = tuple(window for every, window in self.slices if (round_index + 1) % every == 0)
        return [Lane(self.graph.at(self.turn(round_index)), windows)] if windows else []

    def waiting(self, round_index: int) -> dict[str, int]:
        """Nothing that is due stays behind."""
        return {}
