"""MATCHA: matchings of a base graph that are active now and then, critical ones more often (Wang et al. 2019).

In each round matching j is active with probability p_j, and W = I - alpha sum_j B_j L_j over the active ones, with L_j
the Laplacian of a matching and B_j 1 or 0 (docs/method.md, section 1.5). Edges are pairs of ranks 0 .. count - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.colouring import matching_of_edges
from parse_mpi.topology.graphs import Edges

STEPS = (10, 200)  # fewest and most
STEP_WORK = 2e9  # agents cubed times steps: a second or so, whatever the number of agents
ALPHA_TOLERANCE = 1e-4
DECIMALS = 6  # of p and alpha: what the last bits of eigenvalues are may differ between machines


@dataclass(frozen=True, eq=False)
class Activation:
    """What MATCHA knows about one connected graph of at least two agents.

    edges: int64[E, 2] ranks. matching: int64[E], the number of the matching that each edge is in. probabilities:
    float64[M], how often each matching is active. alpha: the weight of an active edge.
    """

    count: int
    edges: Edges
    matching: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    alpha: float

    @property
    def mean_degree(self) -> float:
        """Expected neighbours of an agent in a round."""
        return float(2.0 * self.probabilities[self.matching].sum() / self.count)

    def contraction(self, alpha: float) -> float:
        """lambda_2(E[W^T W]) for a weight alpha: what a round leaves of the expected squared distance to the mean."""
        identity, linear, square = self._terms
        return float(np.linalg.eigvalsh(identity + alpha * linear + alpha**2 * square)[-1])

    @cached_property
    def _terms(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """E[W^T W] - 11^T / A as a polynomial in alpha, float64[A, A] each.

        Matchings are active independently and L_j^2 = 2 L_j, so with L = sum_j p_j L_j it is I - 2 alpha L +
        alpha^2 (L^2 + 2 sum_j p_j (1 - p_j) L_j).
        """
        p_E = self.probabilities[self.matching]
        mean = _laplacian(self.edges, p_E, self.count)
        spread = _laplacian(self.edges, p_E * (1.0 - p_E), self.count)
        return np.eye(self.count) - 1.0 / self.count, -2.0 * mean, mean @ mean + 2.0 * spread


def activation(edges: Edges, count: int, budget: float) -> Activation:
    """Cut a connected graph into matchings; choose p for the best connected mean graph, then alpha for it.

    budget: the mean of p. alpha is at most 1 over the largest degree, so that no weight of any W is negative.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    matching = matching_of_edges(edges, count)
    probabilities = _probabilities(edges, matching, count, budget)
    drawn = Activation(count, edges, matching, probabilities, alpha=0.0)
    largest = 1.0 / int(np.bincount(edges.ravel()).max())
    tolerance = {"xatol": ALPHA_TOLERANCE * largest}
    found = minimize_scalar(drawn.contraction, bounds=(0.0, largest), method="bounded", options=tolerance).x
    alpha = min(found, largest, key=drawn.contraction)  # the search stops short of its bounds
    return replace(drawn, alpha=float(np.floor(alpha * 10**DECIMALS) / 10**DECIMALS))


def _probabilities(edges: Edges, matching: NDArray[np.int64], count: int, budget: float) -> NDArray[np.float64]:
    """float64[M]: the p in [0, 1] of mean `budget` that maximise lambda_2 of sum_j p_j L_j.

    lambda_2 is concave; with v its eigenvector, v^T L_j v is a supergradient. Projected steps, ever shorter, from equal
    p; the best is kept. Of large graphs only a few steps are taken.
    """
    from scipy.linalg import eigh

    best: NDArray[np.float64] = np.full(matching.max() + 1, budget)
    current = best
    best_connectivity = 0.0
    for step in range(1, int(np.clip(STEP_WORK / count**3, *STEPS)) + 1):
        (connectivity,), vector = eigh(_laplacian(edges, current[matching], count), subset_by_index=[1, 1])
        if connectivity > best_connectivity * (1.0 + 1e-9):
            best, best_connectivity = current, connectivity
        slope = np.bincount(matching, np.square(np.diff(vector[edges, 0])).ravel())
        slope -= slope.mean()
        if (length := np.linalg.norm(slope)) < 1e-12:
            break
        current = _projected(current + np.sqrt(len(current) / step) / 4.0 * slope / length, budget)
    return np.round(best, DECIMALS)


def _projected(point: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """The nearest point in [0, 1] with this mean: all shifted by as much, then clipped."""
    low, high = -point.max(), 1.0 - point.min()  # all 0, all 1
    for _ in range(60):
        shift = (low + high) / 2.0
        if np.clip(point + shift, 0.0, 1.0).mean() < mean:
            low = shift
        else:
            high = shift
    clipped: NDArray[np.float64] = np.clip(point + high, 0.0, 1.0)
    return clipped


def _laplacian(edges: Edges, weights: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """float64[A, A], the Laplacian of a graph with weighted edges; weights: float64[E]."""
    matrix = np.zeros((count, count))
    matrix[edges[:, 0], edges[:, 1]] = matrix[edges[:, 1], edges[:, 0]] = -weights
    np.fill_diagonal(matrix, -matrix.sum(axis=1))
    return matrix
