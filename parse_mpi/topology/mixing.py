"""Mixing matrices: the symmetric, doubly stochastic W of one graph in one round, as sparse rows over agents.

A mixing round is x_i <- x_i + sum_j W_ij (x_j - x_i) with the neighbours j in ascending id (docs/method.md, section
1.5), so a row stores its neighbours only, sorted; the diagonal is what the weights leave of 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    def edge_count(self) -> int:
        """Undirected edges; each is stored in the rows of both its ends."""
        return len(self.neighbours) // 2

    @property
    def degrees(self) -> NDArray[np.int64]:
        """int64[A], neighbours of each agent."""
        return np.diff(self.starts)

    def diagonal(self) -> NDArray[np.float64]:
        """float64[A], W_ii = 1 - sum_j W_ij: the weight that an agent keeps for itself."""
        given_away = np.bincount(self._rows(), weights=self.weights, minlength=len(self.agents))
        return 1.0 - given_away.astype(np.float64, copy=False)

    def dense(self) -> NDArray[np.float64]:
        """float64[A, A], rows and columns in the order of `agents`; each row and column sums to 1."""
        matrix = np.diag(self.diagonal())
        matrix[self._rows(), np.searchsorted(self.agents, self.neighbours)] = self.weights
        return matrix

    def _rows(self) -> NDArray[np.intp]:
        """intp[N], the row that each stored entry lies in."""
        return np.repeat(np.arange(len(self.agents)), self.degrees)


def metropolis(agents: NDArray[np.int64], edges: NDArray[np.int64]) -> MixingMatrix:
    """Metropolis-Hastings weights W_ij = 1 / (1 + max(d_i, d_j)) on an undirected graph.

    agents: int64[A] ascending ids, with or without edges. edges: int64[E, 2] ids, each edge once, in either direction.
    A matching gets W = 1/2, 1/2 for each pair; an agent without an edge has W_ii = 1.
    """
    ends = np.searchsorted(agents, edges)
    degrees = np.bincount(ends.ravel(), minlength=len(agents))
    return from_edges(agents, edges, 1.0 / (1.0 + degrees[ends].max(axis=1)))


def from_edges(agents: NDArray[np.int64], edges: NDArray[np.int64], weights: NDArray[np.float64]) -> MixingMatrix:
    """The symmetric mixing matrix with W_ij = W_ji = weights[e] for edge e = (i, j); weights: float64[E].

    Raises ValueError for agents that don't ascend, an edge to an unknown agent, a loop, or an edge given twice.
    """
    agents = np.array(agents, dtype=np.int64)
    count = len(agents)
    ends = np.searchsorted(agents, edges)
    if (np.diff(agents) <= 0).any():
        raise ValueError("agent ids must ascend")
    if (ends == count).any() or (agents[ends] != edges).any():
        raise ValueError("an edge leads to an agent that the graph doesn't have")
    if (ends[:, 0] == ends[:, 1]).any():
        raise ValueError("an edge leads from an agent to itself")
    entries = np.concatenate([ends[:, 0] * count + ends[:, 1], ends[:, 1] * count + ends[:, 0]])
    order = np.argsort(entries)
    if (np.diff(entries[order]) == 0).any():
        raise ValueError("an edge is given twice")
    rows, columns = np.divmod(entries[order], count)
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=count), out=starts[1:])
    return MixingMatrix(agents, starts, agents[columns], np.concatenate([weights, weights])[order])
