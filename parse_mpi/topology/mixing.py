"""Mixing matrices: the W of a graph in a round, doubly stochastic but for weighted means, as sparse rows over agents.

A mixing round is x_i <- x_i + sum_j W_ij (x_j - x_i) with the neighbours j in ascending id (docs/method.md, section
1.5), so a row stores its neighbours only, sorted; the diagonal is what the weights leave of 1. A row belongs to the
agent that receives; its neighbours send. A link is such a pair (sender, receiver); an edge is two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.graphs import Edges, Pairs, stacked


@dataclass(frozen=True, eq=False)
class MixingMatrix:
    """W in compressed sparse rows without its diagonal; row k belongs to agents[k]. All arrays are read-only.

    agents: int64[A] ascending ids. starts: int64[A + 1], row k is the half-open range starts[k]:starts[k + 1] of
    neighbours: int64[N] agent ids, ascending within a row, never the row's own agent, and weights: float64[N].
    """

    agents: NDArray[np.int64]
    starts: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        for array in (self.agents, self.starts, self.neighbours, self.weights):
            array.flags.writeable = False

    @property
    def degrees(self) -> NDArray[np.int64]:
        """int64[A], from how many others each agent receives."""
        return np.diff(self.starts)

    def links(self) -> Pairs:
        """int64[N, 2], a row (sender, receiver) for each weight, in the order of the weights."""
        return np.stack([self.neighbours, np.repeat(self.agents, self.degrees)], axis=1)

    def diagonal(self) -> NDArray[np.float64]:
        """float64[A], W_ii = 1 - sum_j W_ij: the weight that an agent keeps for itself."""
        given_away = np.bincount(self._rows(), weights=self.weights, minlength=len(self.agents))
        return 1.0 - given_away.astype(np.float64, copy=False)

    def dense(self) -> NDArray[np.float64]:
        """float64[A, A], rows and columns in the order of `agents`; each row sums to 1."""
        matrix = np.diag(self.diagonal())
        matrix[self._rows(), np.searchsorted(self.agents, self.neighbours)] = self.weights
        return matrix

    def sparse(self) -> Any:
        """The same as a scipy.sparse.csr_array."""
        from scipy.sparse import csr_array, diags_array  # slow to import and seldom needed

        columns = np.searchsorted(self.agents, self.neighbours)
        shape = (len(self.agents), len(self.agents))
        return csr_array((self.weights, columns, self.starts), shape) + diags_array(self.diagonal())

    def _rows(self) -> NDArray[np.intp]:
        """intp[N], the row that each stored entry lies in."""
        return np.repeat(np.arange(len(self.agents)), self.degrees)


def metropolis(agents: NDArray[np.int64], edges: Edges, step: float = 1.0) -> MixingMatrix:
    """Metropolis-Hastings weights W_ij = step / (1 + max(d_i, d_j)) on an undirected graph.

    agents: int64[A] ascending ids, with or without edges. edges: int64[E, 2] ids, each edge once, in either direction.
    An agent without an edge has W_ii = 1.
    """
    ends = np.searchsorted(agents, edges)
    degrees = np.bincount(ends.ravel(), minlength=len(agents))
    return from_edges(agents, edges, step / (1.0 + degrees[ends].max(axis=1)))


def from_edges(agents: NDArray[np.int64], edges: Edges, weights: NDArray[np.float64]) -> MixingMatrix:
    """The symmetric mixing matrix with W_ij = W_ji = weights[e] for edge e = (i, j); weights: float64[E].

    Raises ValueError as `from_links` does.
    """
    return from_links(agents, both_directions(edges), np.concatenate([weights, weights]))


def from_links(agents: NDArray[np.int64], links: Pairs, weights: NDArray[np.float64]) -> MixingMatrix:
    """The mixing matrix with W_ij = weights[l] for link l = (j, i), from sender to receiver; weights: float64[L].

    Raises ValueError for agents that don't ascend, a link to an unknown agent, a loop, or a link given twice.
    """
    agents = np.array(agents, dtype=np.int64)
    count = len(agents)
    ends = np.searchsorted(agents, links)
    if (np.diff(agents) <= 0).any():
        raise ValueError("agent ids must ascend")
    if (ends == count).any() or (agents[ends] != links).any():
        raise ValueError("an edge leads to an agent that the graph doesn't have")
    if (ends[:, 0] == ends[:, 1]).any():
        raise ValueError("an edge leads from an agent to itself")
    entries = ends[:, 1] * count + ends[:, 0]
    order = np.argsort(entries)
    if (np.diff(entries[order]) == 0).any():
        raise ValueError("an edge is given twice")
    rows, columns = np.divmod(entries[order], count)
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=count), out=starts[1:])
    return MixingMatrix(agents, starts, agents[columns], weights[order])


def side_by_side(matrices: Sequence[MixingMatrix]) -> MixingMatrix:
    """One matrix for the agents of several that have none in common: each mixes among its own."""
    if len(matrices) == 1:
        return matrices[0]
    agents = np.sort(np.concatenate([np.empty(0, np.int64), *(matrix.agents for matrix in matrices)]))
    weights = np.concatenate([np.empty(0), *(matrix.weights for matrix in matrices)])
    return from_links(agents, stacked(matrix.links() for matrix in matrices), weights)


def both_directions(edges: Edges) -> Pairs:
    """int64[2E, 2]: each edge as a link there and one back."""
    return np.concatenate([edges, edges[:, ::-1]])
