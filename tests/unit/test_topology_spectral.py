"""Spectral gaps against dense eigenvalues, the figures of docs/method.md (1.5), and enumeration of all matchings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import permutations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.topology import spectral
from parse_mpi.topology.graphs import complete_matching, greedy_matching
from parse_mpi.topology.mixing import MixingMatrix, from_edges, from_links, metropolis


def mixing_of(graph: networkx.Graph) -> MixingMatrix:
    return metropolis(np.array(sorted(graph)), np.array(list(graph.edges)))


def metropolis_gap(matrix: MixingMatrix) -> float:
    """1 - rho from the two ends of the spectrum."""
    second, smallest = spectral.metropolis_ends(matrix)
    return 1 - max(second, -smallest)


def ring_gap(count: int) -> float:
    """1 - lambda_2 for greedy matchings of a ring."""
    probability = np.full(count, spectral.ring_meeting_probability(count))
    return spectral.meeting_gap(np.arange(count), edges_in(networkx.cycle_graph(count)), probability, step=1.0)


def sampled_gap(agents: NDArray[np.int64], matchings: list[NDArray[np.int64]]) -> float:
    """1 - lambda_2 with the mean over the given matchings (edge lists of ids) in place of the expectation."""
    edges, counts = np.unique(np.concatenate(matchings), axis=0, return_counts=True)
    return spectral.meeting_gap(agents, edges, counts / len(matchings), step=1.0)


def tree_gap(graph: networkx.Graph) -> float:
    """1 - lambda_2 for greedy matchings, from the probabilities on a tree."""
    edges, count = edges_in(graph), len(graph)
    return spectral.meeting_gap(np.arange(count), edges, spectral.tree_meeting_probabilities(edges, count), step=1.0)


def edges_in(graph: networkx.Graph) -> NDArray[np.int64]:
    return np.array(sorted((min(edge), max(edge)) for edge in graph.edges))


def dense_gap(matrix: NDArray[np.float64]) -> float:
    """1 - rho by what rho means: the norm of W away from consensus."""
    return float(1 - np.linalg.norm(matrix - 1 / len(matrix), ord=2))


def all_matchings(graph: networkx.Graph) -> Iterator[NDArray[np.int64]]:
    """The greedy matching of every order of the edges: all equally likely."""
    for order in permutations(graph.edges):
        busy: set[int] = set()
        taken = []
        for edge in order:
            if busy.isdisjoint(edge):
                busy.update(edge)
                taken.append(sorted(edge))
        yield np.array(taken)


def enumerated_gap(graph: networkx.Graph, weight: float = 0.5) -> float:
    """1 - lambda_2(E[W^T W]), the expectation over all edge orders, W written out."""
    total, orders = np.zeros((len(graph), len(graph))), 0
    for matching in all_matchings(graph):
        mixing = np.eye(len(graph))
        for i, j in matching:
            mixing[np.ix_([i, j], [i, j])] = [[1 - weight, weight], [weight, 1 - weight]]
        total += mixing.T @ mixing
        orders += 1
    return float(1 - np.linalg.eigvalsh(total / orders)[-2])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 30, 31])
@pytest.mark.parametrize("make", [networkx.path_graph, networkx.cycle_graph, networkx.complete_graph])
def test_closed_forms_are_the_dense_gap(make: Callable[[int], networkx.Graph], count: int) -> None:
    matrix = mixing_of(make(count))
    assert metropolis_gap(matrix) == pytest.approx(dense_gap(matrix.dense()), abs=1e-13)


@given(st.integers(2, 25), st.floats(0.1, 0.9), st.integers(0, 2**31))
def test_metropolis_gap_of_any_connected_graph_is_the_dense_gap(count: int, probability: float, seed: int) -> None:
    graph = networkx.gnp_random_graph(count, probability, seed=seed)
    networkx.add_path(graph, range(count))
    matrix = mixing_of(graph)
    assert metropolis_gap(matrix) == pytest.approx(dense_gap(matrix.dense()), abs=1e-12)


def exponential_graph(count: int) -> networkx.Graph:
    """Undirected exponential graph: i is linked to i + 1, i + 2, i + 4, ..."""
    powers = [2**power for power in range(math.ceil(math.log2(count)))]
    return networkx.circulant_graph(count, powers)


@pytest.mark.parametrize(
    ("graph", "known", "digits"),
    [
        (networkx.cycle_graph(30), 0.0146, 4),
        (networkx.circulant_graph(30, [1, 15]), 0.0432, 4),
        (networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(5, 6, periodic=True)), 0.2, 3),
        (exponential_graph(30), 0.364, 3),
    ],
    ids=["ring", "chordal ring", "torus 5 x 6", "undirected exponential"],
)
def test_known_gaps_at_30_agents(graph: networkx.Graph, known: float, digits: int) -> None:
    assert round(metropolis_gap(mixing_of(graph)), digits) == known


def test_ring_of_30_contracts_the_squared_distance_by_029() -> None:
    gap = metropolis_gap(mixing_of(networkx.cycle_graph(30)))
    assert 1 - (1 - gap) ** 2 == pytest.approx(0.029, abs=5e-4)


@pytest.mark.parametrize(
    "graph",
    [networkx.gnp_random_graph(300, 0.03, seed=1), networkx.star_graph(80), networkx.complete_bipartite_graph(40, 60)],
    ids=["erdos-renyi", "star", "bipartite"],
)
@pytest.mark.parametrize("dense_limit", [10, 2000], ids=["lanczos", "dense"])
def test_lanczos_and_dense_eigenvalues_give_the_gap(
    graph: networkx.Graph, dense_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert networkx.is_connected(graph)
    matrix = mixing_of(graph)
    monkeypatch.setattr(spectral, "DENSE_LIMIT", dense_limit)
    assert metropolis_gap(matrix) == pytest.approx(dense_gap(matrix.dense()), abs=1e-10)


@given(st.integers(2, 25), st.floats(0.1, 0.9), st.integers(0, 2**31))
def test_both_ends_of_the_spectrum_are_numpys(count: int, probability: float, seed: int) -> None:
    graph = networkx.gnp_random_graph(count, probability, seed=seed)
    networkx.add_path(graph, range(count))
    matrix = mixing_of(graph)
    eigenvalues = np.linalg.eigvalsh(matrix.dense())
    assert spectral.metropolis_ends(matrix) == pytest.approx((eigenvalues[-2], eigenvalues[0]), abs=1e-12)


@pytest.mark.parametrize("dense_limit", [10, 2000], ids=["lanczos", "dense"])
def test_a_cycles_contraction_is_that_of_the_mean_square(dense_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two directed rings, one step and three steps on: W^T W written out."""
    monkeypatch.setattr(spectral, "DENSE_LIMIT", dense_limit)
    ids = np.arange(100)
    cycle = [from_links(ids, np.stack([ids, np.roll(ids, -hop)], axis=1), np.full(100, 0.5)) for hop in (1, 3)]
    square = sum(matrix.dense().T @ matrix.dense() for matrix in cycle) / 2
    expected = np.linalg.eigvalsh(square)[-2]
    assert spectral.mean_square_contraction(cycle) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("step", [1.0, 0.5])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_complete_matching_gap_is_the_enumerated_one(count: int, step: float) -> None:
    exact = enumerated_gap(networkx.complete_graph(count), step / 2)
    assert spectral.complete_meeting_gap(count, step) == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_ring_matching_gap_is_the_enumerated_one(count: int) -> None:
    exact = enumerated_gap(networkx.cycle_graph(count))
    assert ring_gap(count) == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize(
    "graph",
    [networkx.path_graph(5), networkx.star_graph(4), networkx.Graph([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5)])],
    ids=["path", "star", "triangle with a tail"],
)
def test_sampled_gap_over_all_orders_is_the_expectation(graph: networkx.Graph) -> None:
    sampled = sampled_gap(np.array(sorted(graph)), list(all_matchings(graph)))
    assert sampled == pytest.approx(enumerated_gap(graph), abs=1e-13)


@pytest.mark.parametrize(
    "graph",
    [networkx.path_graph(2), networkx.path_graph(6), networkx.star_graph(5), networkx.balanced_tree(2, 2)],
    ids=["pair", "path", "star", "binary tree"],
)
def test_tree_gap_is_the_enumerated_one_on_trees(graph: networkx.Graph) -> None:
    gap = tree_gap(graph)
    assert gap == pytest.approx(enumerated_gap(graph), rel=5e-3)


@pytest.mark.parametrize(("count", "probability"), [(60, 0.1), (150, 0.05), (150, 0.3), (150, 0.9)])
def test_tree_gap_is_that_of_long_samples_on_random_graphs(count: int, probability: float) -> None:
    """A sample's own gap is low. Its mean W along the slowest direction that the tree gives is not: two bounds."""
    graph = networkx.gnp_random_graph(count, probability, seed=3)
    assert networkx.is_connected(graph)
    edges, agents, generator, rounds = edges_in(graph), np.arange(count), np.random.default_rng(0), 2000
    matchings = [greedy_matching(edges, generator) for _ in range(rounds)]
    gap = tree_gap(graph)
    probabilities = spectral.tree_meeting_probabilities(edges, count)
    assert probabilities.sum() == pytest.approx(np.mean([len(taken) for taken in matchings]), rel=0.01)
    sampled = sampled_gap(agents, [edges[taken] for taken in matchings])
    slowest = np.linalg.eigh(from_edges(agents, edges, probabilities / 2).dense())[1][:, -2]
    steps = np.square(np.diff(slowest[edges], axis=1)).ravel() / 2
    unbiased = np.mean([steps[taken].sum() for taken in matchings])
    assert sampled * 0.99 < gap
    assert gap == pytest.approx(unbiased, rel=0.025)


def test_matchings_of_30_agents() -> None:
    """The matching of a ring is slower than the ring; of the complete graph, far faster than either.

    On a long ring a share 1 - exp(-2) of the agents is matched (Flory 1939), which gives the gap to six digits.
    A sample's gap is low, by less than 1 / sqrt(rounds): .504 is what some thousand matchings show for 15 / 29 = .517.
    """
    matched = 1 - math.exp(-2)
    assert ring_gap(30) == pytest.approx(matched / 2 * (1 - math.cos(math.pi / 15)), abs=1e-6)
    assert ring_gap(30) == pytest.approx(0.009, abs=5e-4)
    assert spectral.complete_meeting_gap(30, 1.0) == pytest.approx(15 / 29)
    generator, rounds = np.random.default_rng(0), 4000
    matchings = [complete_matching(tuple(range(30)), generator) for _ in range(rounds)]
    sampled = sampled_gap(np.arange(30), matchings)
    assert sampled == pytest.approx(0.504, abs=0.002)
    assert 15 / 29 - 1 / math.sqrt(rounds) < sampled < 15 / 29
