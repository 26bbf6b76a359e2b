"""Graphs, matchings and components against networkx, a sequential walk, and brute-force enumeration."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.topology.graphs import (
    UndirectedGraph,
    complete_matching,
    connected_components,
    greedy_matching,
    induced,
    ordered,
    without,
)

Edges = list[tuple[int, int]]


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[tuple[int, ...], Edges]:
    """Ascending ids with gaps and some of their pairs, in order."""
    members = tuple(sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=12))))
    share = draw(st.integers(1, 10))
    return members, [pair for pair in combinations(members, 2) if draw(st.integers(1, 10)) <= share]


def as_array(edges: Edges) -> NDArray[np.int64]:
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def as_edges(array: NDArray[np.int64]) -> Edges:
    return [(i, j) for i, j in array.tolist()]


def walk(edges: Edges, order: list[int]) -> list[int]:
    """The greedy matching as anyone would write it: take each edge in turn whose ends are still free."""
    busy: set[int] = set()
    taken = []
    for position in order:
        if busy.isdisjoint(edges[position]):
            busy.update(edges[position])
            taken.append(position)
    return sorted(taken)


def within_five_sigma(count: int, trials: int, probability: float) -> bool:
    return bool(abs(count - trials * probability) < 5 * np.sqrt(trials * probability * (1 - probability)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_ordered_drops_loops_directions_and_repetitions(pairs: Edges) -> None:
    assert as_edges(ordered(as_array(pairs))) == sorted({(min(p), max(p)) for p in pairs if p[0] != p[1]})


@given(edge_lists(), st.data())
def test_without_takes_links_out(graph: tuple[tuple[int, ...], Edges], data: st.DataObject) -> None:
    members, edges = graph
    cut = [pair for pair in combinations((*members, 61), 2) if data.draw(st.booleans())]
    assert as_edges(without(as_array(edges), cut)) == [edge for edge in edges if edge not in cut]


def test_a_complete_graph_is_known_without_its_edges() -> None:
    graph = UndirectedGraph((3, 5, 8), lambda: pytest.fail("nobody should ask"), is_complete=True)
    assert graph.degrees().tolist() == [2, 2, 2]
    assert graph.parts() == [(3, 5, 8)]


@given(edge_lists(), st.data())
def test_induced_is_networkx_subgraph(graph: tuple[tuple[int, ...], Edges], data: st.DataObject) -> None:
    members, edges = graph
    kept = tuple(agent for agent in members if data.draw(st.booleans()))
    expected = networkx.Graph(edges).subgraph(kept).edges
    assert as_edges(induced(as_array(edges), kept)) == sorted((min(edge), max(edge)) for edge in expected)


@given(edge_lists(), st.integers(0, 2**32))
def test_greedy_matching_is_the_sequential_walk(graph: tuple[tuple[int, ...], Edges], seed: int) -> None:
    _, edges = graph
    order = np.random.default_rng(seed).permutation(len(edges)).tolist()
    taken = greedy_matching(as_array(edges), np.random.default_rng(seed)).tolist()
    assert taken == walk(edges, order)
    matched = {edges[position] for position in taken}
    assert networkx.is_maximal_matching(networkx.Graph(edges), matched)


def test_greedy_matching_is_the_sequential_walk_on_a_graph_of_many_rounds() -> None:
    edges = sorted(networkx.gnp_random_graph(200, 0.2, seed=3).edges)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(edges)).tolist()
        assert greedy_matching(as_array(edges), np.random.default_rng(seed)).tolist() == walk(edges, order)


def test_greedy_matching_has_the_distribution_of_all_edge_orders() -> None:
    edges = [(0, 1), (1, 2), (2, 3), (3, 4), (1, 4)]
    orders = list(permutations(range(len(edges))))
    exact = Counter(tuple(walk(edges, list(order))) for order in orders)
    generator, draws = np.random.default_rng(0), 4000
    drawn = Counter(tuple(greedy_matching(as_array(edges), generator).tolist()) for _ in range(draws))
    assert set(drawn) == set(exact)
    assert all(within_five_sigma(drawn[key], draws, exact[key] / len(orders)) for key in exact)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 1001])
def test_complete_matching_pairs_all_but_an_odd_one(count: int) -> None:
    members = tuple(range(3, 3 + 2 * count, 2))
    pairs = complete_matching(members, np.random.default_rng(count))
    assert pairs.shape == (count // 2, 2)
    assert pairs.dtype == np.int64
    assert len(set(pairs.ravel().tolist())) == pairs.size
    assert set(pairs.ravel().tolist()) <= set(members)
    assert as_edges(pairs) == sorted((min(pair), max(pair)) for pair in as_edges(pairs))


def test_complete_matching_is_uniform_over_the_15_matchings_of_six() -> None:
    generator, draws = np.random.default_rng(0), 6000
    drawn = Counter(str(complete_matching((0, 1, 2, 5, 6, 9), generator).tolist()) for _ in range(draws))
    assert len(drawn) == 15
    assert all(within_five_sigma(count, draws, 1 / 15) for count in drawn.values())


@given(edge_lists())
def test_components_are_those_of_networkx(graph: tuple[tuple[int, ...], Edges]) -> None:
    members, edges = graph
    reference = networkx.Graph(edges)
    reference.add_nodes_from(members)
    expected = [tuple(sorted(part)) for part in networkx.connected_components(reference)]
    assert connected_components(members, as_array(edges)) == sorted(expected, key=lambda part: (-len(part), part))


def test_components_of_a_long_path_in_shuffled_order() -> None:
    shuffled = np.random.default_rng(0).permutation(3000)
    edges = np.stack([shuffled[:-1], shuffled[1:]], axis=1)
    assert connected_components(tuple(range(3000)), edges) == [tuple(range(3000))]
    assert connected_components(tuple(range(3000)), np.delete(edges, 999, axis=0)) == [
        tuple(sorted(shuffled[1000:].tolist())),
        tuple(sorted(shuffled[:1000].tolist())),
    ]
