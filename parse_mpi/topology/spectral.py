"""How fast a mixing matrix mixes: spectral gaps, in closed form where there is one.

A static W shrinks the distance to the mean by rho a round, rho the second largest absolute eigenvalue: its gap is
1 - rho. Where rounds differ, lambda_2(E[W^T W]) is what a round leaves of the squared distance on average: their gap is
1 minus that, with E over the rounds of a cycle or over random draws (docs/method.md, section 1.5).

A random matching has W = I - s L / 2 with L its Laplacian and the step s = 1, or 1/2 for a lazy W. As L^2 = 2 L,
E[W^T W] = I - s (1 - s / 2) E[L], where E[L] is the Laplacian of the probabilities that two agents meet. All functions
want a connected graph of at least two agents, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import stream
from parse_mpi.topology.graphs import Edges
from parse_mpi.topology.mixing import MixingMatrix, from_edges

DENSE_LIMIT = 2_000  # agents; dense eigenvalues take 0.4 s and 32 MB there, and grow with the cube and the square
TREE_STEPS = 10  # of Runge and Kutta; they change the gaps of random graphs by less than a thousandth


def metropolis_ends(matrix: MixingMatrix) -> tuple[float, float]:
    """The second largest and the smallest eigenvalue of a graph's Metropolis matrix.

    Closed forms for the complete graph, rings and paths.
    """
    count, degrees = len(matrix.agents), matrix.degrees
    if degrees.min() == count - 1:
        return 0.0, 0.0
    if degrees.max() == 2:  # W = I - L / 3
        is_ring = degrees.min() == 2
        turns = np.array([2, count // 2 * 2] if is_ring else [1, count - 1]) * np.pi / count
        second, smallest = 1.0 - 2.0 * (1.0 - np.cos(turns)) / 3.0
        return float(second), float(smallest)
    return eigenvalue_ends(matrix)


def eigenvalue_ends(matrix: MixingMatrix) -> tuple[float, float]:
    """The second largest and the smallest eigenvalue of any symmetric W: dense up to DENSE_LIMIT agents, or Lanczos."""
    if len(matrix.agents) <= DENSE_LIMIT:
        eigenvalues = np.linalg.eigvalsh(matrix.dense())
        return float(eigenvalues[-2]), float(eigenvalues[0])
    mixing = matrix.sparse()
    return _lanczos(mixing, 2.0, "LA"), _lanczos(mixing, 0.0, "SA")


def mean_square_contraction(matrices: Sequence[MixingMatrix]) -> float:
    """lambda_2 of the mean of W^T W over the rounds of a cycle; the W need not be symmetric."""
    mixing = [matrix.sparse() for matrix in matrices]
    square = sum(W.T @ W for W in mixing) / len(mixing)
    if len(matrices[0].agents) <= DENSE_LIMIT:
        return max(float(np.linalg.eigvalsh(square.toarray())[-2]), 0.0)
    return max(_lanczos(square, 2.0, "LA"), 0.0)


def _lanczos(symmetric: Any, shift: float, which: str) -> float:
    """An end of the spectrum of a sparse doubly stochastic matrix whose leading 1 is lowered by `shift`."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = symmetric.shape[0]

    def apply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(symmetric @ vector - shift * vector.mean())

    operator = LinearOperator((count, count), matvec=apply, dtype=np.float64)
    start = stream(0, "lanczos").standard_normal(count)
    return float(eigsh(operator, k=1, which=which, v0=start, ncv=64, return_eigenvectors=False)[0])


def meeting_gap(agents: NDArray[np.int64], edges: Edges, probabilities: NDArray[np.float64], step: float) -> float:
    """1 - lambda_2(E[W^T W]) of random matchings that hold each edge with a probability, float64[E]."""
    share = step * (1.0 - step / 2.0)
    return 1.0 - eigenvalue_ends(from_edges(agents, edges, share * probabilities))[0]


def complete_meeting_gap(count: int, step: float) -> float:
    """The same for uniform maximal matchings of the complete graph: each pair meets with the same probability."""
    return 2.0 * step * (1.0 - step / 2.0) * (count // 2) / (count - 1)


def ring_meeting_probability(count: int) -> float:
    """How likely a greedy matching, in random order, of a ring of at least three agents takes an edge.

    The first edge leaves a path of count - 2 agents. On a path of k agents the first edge falls uniformly and leaves
    two shorter paths, so the expected pairs are D(k) = 1 + 2 (D(0) + ... + D(k - 2)) / (k - 1), D(0) = D(1) = 0.
    """
    expected_pairs = np.zeros(count)
    total = 0.0
    for length in range(2, count - 1):
        total += expected_pairs[length - 2]
        expected_pairs[length] = 1.0 + 2.0 * total / (length - 1)
    return float((1.0 + expected_pairs[count - 2]) / count)


def tree_meeting_probabilities(edges: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """float64[E], how likely a greedy matching in random order takes each edge (ranks 0 .. count - 1) of a tree.

    Good for what looks like a tree, or is dense and random, around each agent: exact on trees, up to the finite steps.
    The gaps of Erdos-Renyi graphs of 60 agents and more, of any density, are within 1 to 2 % of long samples; wrong by
    up to a third where all agents lie on one short odd cycle.

    Let the edges come at uniform times in 0 .. 1. On a tree the branches at an agent are independent: seen from one
    neighbour, it is still free at time t if none of its other edges came while that edge's other end was free, as
    seen from here. So with q(t) of each edge and direction and Q its integral, q = product of 1 - Q over the other
    branches, and an edge is taken at the rate q q'. Time runs logarithmically, as most is over by 1 / degree.
    """
    ends_2E = np.ascontiguousarray(edges.T)
    degree = 2.0 * len(edges) / count
    step = np.log1p(degree) / TREE_STEPS

    def speed(came_2E: NDArray[np.float64], at: float) -> NDArray[np.float64]:
        """dQ / ds at s = log(1 + degree t): row 0 is the first end as the second one sees it, row 1 the reverse."""
        log_2E = np.log1p(-came_2E)
        total = np.bincount(ends_2E[1], log_2E[0], count) + np.bincount(ends_2E[0], log_2E[1], count)
        return np.asarray(np.exp(total[ends_2E] - log_2E[::-1] + at) / degree)

    def rate(slope_2E: NDArray[np.float64], at: float) -> NDArray[np.float64]:
        return np.asarray(slope_2E.prod(axis=0) * degree * np.exp(-at))

    came_2E, taken_E = np.zeros(ends_2E.shape), np.zeros(len(edges))
    for s in step * np.arange(TREE_STEPS):
        a = speed(came_2E, s)
        b = speed(came_2E + step / 2 * a, s + step / 2)
        c = speed(came_2E + step / 2 * b, s + step / 2)
        d = speed(came_2E + step * c, s + step)
        came_2E += step / 6 * (a + 2 * b + 2 * c + d)
        taken_E += step / 6 * (rate(a, s) + 4 * rate(c, s + step / 2) + rate(d, s + step))
    return taken_E
