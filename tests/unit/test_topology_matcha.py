"""MATCHA: matchings against their definition, probabilities and alpha against a search and what is known."""

from __future__ import annotations

from itertools import product

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.job import Topology
from parse_mpi.topology.colouring import matching_of_edges
from parse_mpi.topology.matcha import Activation, activation
from parse_mpi.topology.slice_graph import slice_graph


def edges_in(graph: networkx.Graph) -> NDArray[np.int64]:
    return np.array(sorted((min(edge), max(edge)) for edge in graph.edges), dtype=np.int64).reshape(-1, 2)


def laplacian(edges: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    graph = networkx.empty_graph(count)
    graph.add_edges_from(edges.tolist())
    return networkx.laplacian_matrix(graph).toarray().astype(float)


def laplacians(drawn: Activation) -> list[NDArray[np.float64]]:
    return [laplacian(drawn.edges[drawn.matching == j], drawn.count) for j in range(len(drawn.probabilities))]


@given(st.integers(1, 24), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_edges_are_cut_into_at_most_one_matching_more_than_the_degree(
    count: int, probability: float, seed: int
) -> None:
    graph = networkx.gnp_random_graph(count, probability, seed=seed)
    edges = edges_in(graph)
    matching = matching_of_edges(edges, count)
    assert len(matching) == len(edges)
    for j in range(matching.max(initial=-1) + 1):
        ends = edges[matching == j]
        assert len(np.unique(ends)) == ends.size > 0
    assert matching.max(initial=-1) + 1 <= max(degree for _, degree in graph.degree) + 1


@given(st.integers(3, 9), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_the_contraction_is_the_expectation_over_all_draws(count: int, budget: float, seed: int) -> None:
    tree = networkx.random_labeled_tree(count, seed=seed)
    tree.add_edge(0, count - 1)
    drawn = activation(edges_in(tree), count, budget)
    total = np.zeros((count, count))
    for active in product([0, 1], repeat=len(drawn.probabilities)):
        chance = np.prod([p if b else 1 - p for b, p in zip(active, drawn.probabilities, strict=True)])
        mixing = np.eye(count) - drawn.alpha * sum(b * L for b, L in zip(active, laplacians(drawn), strict=True))
        assert mixing.min() >= -1e-12
        total += chance * mixing.T @ mixing
    assert drawn.contraction(drawn.alpha) == pytest.approx(np.linalg.eigvalsh(total)[-2], abs=1e-10)


@pytest.mark.parametrize("count", [6, 10, 31])
def test_with_the_whole_budget_alpha_is_the_best_constant_weight(count: int) -> None:
    """Known for a fixed graph: 2 / (lambda_2 + lambda_n) of its Laplacian (Xiao and Boyd 2004)."""
    graph = networkx.cycle_graph(count)
    drawn = activation(edges_in(graph), count, budget=1.0)
    eigenvalues = np.linalg.eigvalsh(laplacian(edges_in(graph), count))
    assert drawn.probabilities.tolist() == [1.0] * len(drawn.probabilities)
    assert drawn.alpha == pytest.approx(min(2 / (eigenvalues[1] + eigenvalues[-1]), 0.5), rel=1e-3)


@pytest.mark.parametrize("budget", [0.2, 0.5, 0.8])
def test_probabilities_connect_the_mean_graph_as_well_as_a_search_finds(budget: float) -> None:
    """Two triangles and a bridge: three matchings, all p of the budget on a fine grid."""
    graph = networkx.Graph([(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (3, 5)])
    drawn = activation(edges_in(graph), 6, budget)
    assert drawn.probabilities.mean() == pytest.approx(budget, abs=1e-6)
    parts = laplacians(drawn)

    def connectivity(p: NDArray[np.float64]) -> float:
        return float(np.linalg.eigvalsh(sum(q * L for q, L in zip(p, parts, strict=True)))[1])

    grid = np.arange(0, 1.001, 0.02)
    pairs = np.array(np.meshgrid(grid, grid)).reshape(2, -1)
    points = np.vstack([pairs, budget * 3 - pairs.sum(axis=0)]).T
    best = max(connectivity(p) for p in points if 0 <= p[2] <= 1)
    assert len(parts) == 3
    assert connectivity(drawn.probabilities) >= best * (1 - 1e-3)
    bridge = drawn.matching[drawn.edges.tolist().index([2, 3])]
    assert drawn.probabilities[bridge] == drawn.probabilities.max(), "the critical link is active most often"


def test_alpha_is_the_best_below_its_bound() -> None:
    torus = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(5, 6, periodic=True))
    for budget in (0.3, 0.9):
        drawn = activation(edges_in(torus), 30, budget)
        best = min(drawn.contraction(alpha) for alpha in np.linspace(0, 0.25, 251))
        assert drawn.contraction(drawn.alpha) <= best + 1e-4


def test_matchings_are_active_as_often_as_their_probabilities_say() -> None:
    spec = Topology(kind="matcha", base="chordal-ring", budget=0.4)
    graph = slice_graph("a", [range(12)], spec, 3, 12)
    ((part, drawn),) = graph.activations()
    assert part == tuple(range(12))
    rounds, seen = 2000, np.zeros((12, 12))
    square = np.zeros((12, 12))
    for round_index in range(rounds):
        mixing = graph.at(round_index).dense()
        seen += mixing
        square += mixing.T @ mixing
    expected = np.eye(12) - drawn.alpha * sum(
        p * L for p, L in zip(drawn.probabilities, laplacians(drawn), strict=True)
    )
    np.testing.assert_allclose(seen / rounds, expected, atol=4 * drawn.alpha / np.sqrt(rounds))
    assert 1 - np.linalg.eigvalsh(square / rounds)[-2] == pytest.approx(graph.spectral_gap(), rel=0.05)


def test_pieces_of_a_base_that_falls_apart_have_weights_of_their_own() -> None:
    edges = [(0, 1), (1, 2), (4, 5), (4, 6), (4, 7)]
    spec = Topology.model_validate(
        {"kind": "matcha", "base": "edge-list", "edges": edges, "budget": 0.5, "scope": "induced"}
    )
    graph = slice_graph("a", [range(9)], spec, 0, 9)
    assert [part for part, _ in graph.activations()] == [(4, 5, 6, 7), (0, 1, 2)]
    assert graph.components() == [(4, 5, 6, 7), (0, 1, 2), (3,), (8,)]
    assert graph.spectral_gap() == 0.0
