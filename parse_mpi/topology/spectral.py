"""How fast a mixing matrix mixes: spectral gaps, in closed form where there is one.

A static W shrinks the distance to the mean by rho a round, rho the second largest absolute eigenvalue: its gap is
1 - rho. Random matchings shrink the expected squared distance by lambda_2(E[W^T W]): their gap is 1 minus that. As
the W of a matching is a projection, E[W^T W] = E[W] = I - L / 2 with L the Laplacian of the edges' probabilities
(docs/method.md, section 1.5). All functions want a connected graph of at least two agents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import stream
from parse_mpi.topology.mixing import MixingMatrix, from_edges

DENSE_LIMIT = 2_000  # agents; dense eigenvalues take 0.4 s and 32 MB there, and grow with the cube and the square
TREE_STEPS = 10  # of Runge and Kutta; they change the gaps of random graphs by less than a thousandth


def metropolis_gap(matrix: MixingMatrix) -> float:
    """1 - rho of a connected graph's Metropolis matrix; closed forms for the complete graph, rings and paths."""
    count, degrees = len(matrix.agents), matrix.degrees
    if degrees.min() == count - 1:
        return 1.0
    if degrees.max() == 2:
        turn = np.pi * (2 if degrees.min() == 2 else 1) / count
        return float(2.0 * (1.0 - np.cos(turn)) / 3.0)
    return 1.0 - second_eigenvalue(matrix)


def second_eigenvalue(matrix: MixingMatrix) -> float:
    """rho, the second largest absolute eigenvalue of W: dense up to DENSE_LIMIT agents, Lanczos beyond."""
    if len(matrix.agents) <= DENSE_LIMIT:
        eigenvalues = np.linalg.eigvalsh(matrix.dense())
        return float(max(eigenvalues[-2], -eigenvalues[0]))
    return _second_eigenvalue_by_lanczos(matrix)


def _second_eigenvalue_by_lanczos(matrix: MixingMatrix) -> float:
    """The same as the largest absolute eigenvalue of W - 11^T / A, whose eigenvalues are W's without the leading 1."""
    from scipy.sparse import csr_array, diags_array  # slow to import and seldom needed
    from scipy.sparse.linalg import LinearOperator, eigsh

    count = len(matrix.agents)
    columns = np.searchsorted(matrix.agents, matrix.neighbours)
    mixing = csr_array((matrix.weights, columns, matrix.starts), shape=(count, count)) + diags_array(matrix.diagonal())

    def apply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(mixing @ vector - vector.mean())

    operator = LinearOperator((count, count), matvec=apply, dtype=np.float64)
    start = stream(0, "lanczos").standard_normal(count)
    return float(abs(eigsh(operator, k=1, which="LM", v0=start, ncv=64, return_eigenvectors=False)[0]))


def complete_matching_gap(count: int) -> float:
    """1 - lambda_2 for uniform maximal matchings of the complete graph: each pair meets with the same probability."""
    return (count // 2) / (count - 1)


def ring_matching_gap(count: int) -> float:
    """1 - lambda_2 for greedy matchings, in random order, of a ring of at least three agents.

    The first edge leaves a path of count - 2 agents. On a path of k agents the first edge falls uniformly and leaves
    two shorter paths, so the expected pairs are D(k) = 1 + 2 (D(0) + ... + D(k - 2)) / (k - 1), D(0) = D(1) = 0.
    """
    expected_pairs = np.zeros(count)
    total = 0.0
    for length in range(2, count - 1):
        total += expected_pairs[length - 2]
        expected_pairs[length] = 1.0 + 2.0 * total / (length - 1)
    edge_probability = (1.0 + expected_pairs[count - 2]) / count
    return float(edge_probability * (1.0 - np.cos(2.0 * np.pi / count)))


def sampled_matching_gap(agents: NDArray[np.int64], matchings: Sequence[NDArray[np.int64]]) -> float:
    """1 - lambda_2 with the mean over the given matchings (edge lists of ids) in place of the expectation.

    Low on average, as the second eigenvalue is convex, by less than 1 / sqrt(number of matchings).
    """
    edges, counts = np.unique(np.concatenate(matchings), axis=0, return_counts=True)
    return 1.0 - second_eigenvalue(from_edges(agents, edges, 0.5 * counts / len(matchings)))


def tree_matching_gap(agents: NDArray[np.int64], edges: NDArray[np.int64]) -> float:
    """1 - lambda_2 for greedy matchings of a graph that looks like a tree, or is dense and random, around each agent.

    Exact on trees, up to the finite steps. On Erdos-Renyi graphs of 60 agents and more, of any density, within 1 to 2 %
    of long samples. Wrong by up to a third where all agents lie on one short odd cycle.
    """
    meeting = tree_meeting_probabilities(np.searchsorted(agents, edges), len(agents))
    return 1.0 - second_eigenvalue(from_edges(agents, edges, 0.5 * meeting))


def tree_meeting_probabilities(edges: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """float64[E], how likely a greedy matching in random order takes each edge (ranks 0 .. count - 1) of a tree.

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
