"""Every undirected kind against networkx, by rank and by the figures of docs/method.md, section 1.5."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parse_mpi.job import Topology
from parse_mpi.topology.generators import GENERATORS, draw_edges, exponential_hops
from parse_mpi.topology.graphs import connected_components, induced

Edges = list[tuple[int, int]]
KEYS: dict[str, dict[str, Any]] = {
    "erdos-renyi": {"probability": 0.3},
    "random-regular": {"degree": 4},
    "small-world": {"degree": 4, "probability": 0.2},
    "edge-list": {"edges": [(0, 7), (2, 4), (4, 6)], "scope": "induced"},
    "static-exponential": {"directed": False},
}


def draw(kind: str, members: tuple[int, ...], seed: int = 0, **keys: Any) -> Edges:
    spec = Topology.model_validate({"kind": kind, **KEYS.get(kind, {}), **keys})
    return [(i, j) for i, j in draw_edges(kind, members, spec, seed).tolist()]


def edges_of(graph: networkx.Graph) -> Edges:
    return sorted({(min(edge), max(edge)) for edge in graph.edges if edge[0] != edge[1]})


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ((7,), []),
        ((7, 9), [(7, 9)]),
        ((2, 7, 9), [(2, 7), (2, 9), (7, 9)]),
        ((1, 2, 7, 9, 30), [(1, 2), (1, 30), (2, 7), (7, 9), (9, 30)]),
    ],
)
def test_ring_links_members_by_rank(members: tuple[int, ...], expected: Edges) -> None:
    assert draw("ring", members) == expected


def torus(count: int) -> networkx.Graph:
    rows = max(divisor for divisor in range(1, count + 1) if count % divisor == 0 and divisor**2 <= count)
    grid = networkx.grid_2d_graph(rows, count // rows, periodic=True)
    return networkx.relabel_nodes(grid, {(r, c): r * (count // rows) + c for r, c in grid})


REFERENCES: dict[str, Callable[[int], networkx.Graph]] = {
    "ring": networkx.cycle_graph,
    "chordal-ring": lambda count: networkx.circulant_graph(count, [1, count // 2]),
    "torus": torus,
    "star": lambda count: networkx.star_graph(count - 1),
    "complete": networkx.complete_graph,
    "static-exponential": lambda count: networkx.circulant_graph(
        count, [2**t for t in range(math.ceil(math.log2(count)))]
    ),
}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 30, 31])
@pytest.mark.parametrize("kind", REFERENCES)
def test_kinds_without_chance_are_what_networkx_makes(kind: str, count: int) -> None:
    assert draw(kind, tuple(range(count))) == edges_of(REFERENCES[kind](count))


def test_a_torus_of_a_prime_number_is_a_ring() -> None:
    assert draw("torus", tuple(range(13))) == draw("ring", tuple(range(13)))


@given(st.integers(1, 60), st.floats(0.001, 1.0), st.integers(0, 2**63))
def test_erdos_renyi_is_what_networkx_draws(count: int, probability: float, seed: int) -> None:
    """Runs of earlier versions drew their graphs with networkx."""
    expected = networkx.fast_gnp_random_graph(count, probability, seed=seed)
    assert draw("erdos-renyi", tuple(range(count)), seed, probability=probability) == edges_of(expected)


def test_a_probability_that_could_never_link_anybody_is_refused() -> None:
    assert draw("erdos-renyi", tuple(range(40)), probability=1e-12) == []
    with pytest.raises(ValidationError, match="greater than or equal to"):
        Topology(kind="erdos-renyi", probability=1e-13)


def test_erdos_renyi_links_each_pair_with_the_probability() -> None:
    members, draws = (0, 2, 3, 7, 8, 9), 1000
    counts = Counter(edge for seed in range(draws) for edge in draw("erdos-renyi", members, seed))
    assert set(counts) == set(combinations(members, 2))
    assert all(abs(count - 300) < 5 * math.sqrt(draws * 0.3 * 0.7) for count in counts.values())


@given(st.integers(1, 40), st.integers(2, 8), st.integers(0, 2**63))
def test_random_regular_graphs_are_regular_where_they_can_be(count: int, degree: int, seed: int) -> None:
    """Few holders are all linked; an odd number of them can't all have an odd degree."""
    expected = min(degree, count - 1)
    expected -= expected % 2 * (count % 2)
    degrees = Counter(
        agent for edge in draw("random-regular", tuple(range(count)), seed, degree=degree) for agent in edge
    )
    assert [degrees[agent] for agent in range(count)] == [expected] * count


@pytest.mark.parametrize(("count", "degree"), [(60, 57), (200, 190)])
def test_dense_random_regular_graphs_are_drawn_without_a_long_search(count: int, degree: int) -> None:
    drawn = [draw("random-regular", tuple(range(count)), seed, degree=degree) for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    for edges in drawn:
        assert set(Counter(agent for edge in edges for agent in edge).values()) == {degree}


@given(st.integers(1, 40), st.sampled_from([2, 4, 6]), st.integers(0, 2**63))
def test_small_worlds_move_some_links_of_a_ring_lattice(count: int, degree: int, seed: int) -> None:
    """Rewiring keeps the number of links, and of 2 degree n of them moves a share of the probability."""
    lattice = edges_of(networkx.circulant_graph(count, range(1, degree // 2 + 1)))
    assert draw("small-world", tuple(range(count)), seed, degree=degree, probability=1e-9) == lattice
    moved = draw("small-world", tuple(range(count)), seed, degree=degree, probability=0.5)
    assert len(moved) == len(lattice)
    if count > 4 * degree:
        assert 0.2 < len(set(lattice) - set(moved)) / len(lattice) < 0.8


def test_an_edge_list_joins_the_agents_that_it_names() -> None:
    assert draw("edge-list", tuple(range(8))) == [(0, 7), (2, 4), (4, 6)]
    assert draw("edge-list", tuple(range(7))) == [(2, 4), (4, 6)]


@pytest.mark.parametrize("kind", ["erdos-renyi", "random-regular", "small-world"])
def test_random_kinds_are_functions_of_their_seed(kind: str) -> None:
    members = tuple(range(40))
    first = draw(kind, members, 1)
    draw_edges.cache_clear()
    assert first == draw(kind, members, 1)
    assert first != draw(kind, members, 2)


@pytest.mark.parametrize("kind", GENERATORS)
def test_edge_lists_are_ordered_and_read_only(kind: str) -> None:
    members = tuple(range(8)) if kind == "edge-list" else tuple(range(0, 60, 2))
    spec = Topology.model_validate({"kind": kind, **KEYS.get(kind, {})})
    edges = draw_edges(kind, members, spec, 5)
    assert edges.dtype == np.int64
    pairs = [(i, j) for i, j in edges.tolist()]
    assert pairs == sorted({(min(pair), max(pair)) for pair in pairs})
    assert set(edges.ravel().tolist()) <= set(members)
    with pytest.raises(ValueError, match="read-only"):
        edges[0, 0] = 1


def test_hops_double_until_they_have_gone_round() -> None:
    assert [exponential_hops(count) for count in (1, 2, 3, 4, 5, 30)] == [
        (),
        (1,),
        (1, 2),
        (1, 2),
        (1, 2, 4),
        (1, 2, 4, 8, 16),
    ]


@pytest.mark.parametrize(
    ("kind", "known", "tolerance"),
    [("ring", 0.0, 0.002), ("chordal-ring", 0.004, 0.006), ("torus", 0.685, 0.05), ("static-exponential", 1.0, 0.002)],
)
def test_how_often_both_modality_graphs_hang_together(kind: str, known: float, tolerance: float) -> None:
    """30 agents 10:10:10 at random places, the graph of all cut down to the holders of each modality."""
    members = tuple(range(30))
    edges = draw_edges(kind, members, Topology.model_validate({"kind": kind, **KEYS.get(kind, {})}), 0)
    generator, draws, connected = np.random.default_rng(0), 1000, 0
    for _ in range(draws):
        placed = generator.permutation(30)
        groups = [tuple(sorted(part.tolist())) for part in (placed[:20], placed[10:])]
        connected += all(len(connected_components(group, induced(edges, group))) == 1 for group in groups)
    assert connected / draws == pytest.approx(known, abs=tolerance)
