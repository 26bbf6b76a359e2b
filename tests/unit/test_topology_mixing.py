"""Mixing matrices against the definition, written as nested loops, and against the algebra that mixing rests on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.topology.mixing import MixingMatrix, from_edges, from_links, metropolis, side_by_side

Graph = tuple[list[int], list[tuple[int, int]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Ascending agent ids with gaps, and some of their pairs in any order and direction."""
    agents = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=9)))
    chosen = [pair for pair in combinations(agents, 2) if draw(st.booleans())]
    edges = [pair if draw(st.booleans()) else pair[::-1] for pair in chosen]
    return agents, draw(st.permutations(edges))


def build(agents: list[int], edges: list[tuple[int, int]]) -> MixingMatrix:
    return metropolis(np.array(agents), np.array(edges, dtype=np.int64).reshape(-1, 2))


def metropolis_by_definition(agents: list[int], edges: list[tuple[int, int]]) -> NDArray[np.float64]:
    linked = {frozenset(edge) for edge in edges}
    degree = {agent: sum(agent in edge for edge in linked) for agent in agents}
    matrix = np.zeros((len(agents), len(agents)))
    for row, i in enumerate(agents):
        for column, j in enumerate(agents):
            if frozenset((i, j)) in linked:
                matrix[row, column] = 1 / (1 + max(degree[i], degree[j]))
        matrix[row, row] = 1 - matrix[row].sum()
    return matrix


@given(graphs())
def test_metropolis_is_its_definition(graph: Graph) -> None:
    agents, edges = graph
    matrix = build(agents, edges)
    np.testing.assert_allclose(matrix.dense(), metropolis_by_definition(agents, edges), rtol=0, atol=1e-15)
    links = {(i, j) for i, j in matrix.links().tolist()}
    assert links == {*edges, *(edge[::-1] for edge in edges)}


@given(graphs())
def test_mixing_is_symmetric_and_doubly_stochastic(graph: Graph) -> None:
    dense = build(*graph).dense()
    assert (dense == dense.T).all()
    assert (dense >= 0).all()
    assert (dense.diagonal() > 0).all()
    np.testing.assert_allclose(dense.sum(axis=0), 1.0, rtol=0, atol=1e-14)
    assert np.linalg.eigvalsh(dense)[0] > -1.0


@given(graphs())
def test_rows_hold_the_neighbours_in_ascending_id(graph: Graph) -> None:
    agents, edges = graph
    matrix = build(agents, edges)
    assert [array.dtype for array in (matrix.agents, matrix.starts, matrix.neighbours)] == [np.dtype(np.int64)] * 3
    assert matrix.weights.dtype == np.float64
    for row, agent in enumerate(agents):
        stored = matrix.neighbours[matrix.starts[row] : matrix.starts[row + 1]].tolist()
        assert stored == sorted({j for edge in edges if agent in edge for j in edge} - {agent})
        assert matrix.degrees[row] == len(stored)


@given(graphs())
def test_residual_form_over_the_rows_is_the_dense_product(graph: Graph) -> None:
    matrix = build(*graph)
    count = len(matrix.agents)
    x_AP = np.arange(3.0 * count).reshape(count, 3) ** 2
    mixed_AP = x_AP.copy()
    for row in range(count):
        for entry in range(matrix.starts[row], matrix.starts[row + 1]):
            neighbour = matrix.agents.tolist().index(matrix.neighbours[entry])
            mixed_AP[row] += matrix.weights[entry] * (x_AP[neighbour] - x_AP[row])
    np.testing.assert_allclose(mixed_AP, matrix.dense() @ x_AP, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mixed_AP.mean(axis=0), x_AP.mean(axis=0), rtol=1e-12)


def test_matched_pairs_average_and_an_idle_agent_keeps_its_own() -> None:
    dense = build([1, 4, 6, 7, 9], [(9, 1), (4, 7)]).dense()
    expected = np.eye(5)
    expected[np.ix_([0, 4], [0, 4])] = 0.5
    expected[np.ix_([1, 3], [1, 3])] = 0.5
    assert (dense == expected).all()


def test_given_weights_are_kept_for_both_directions() -> None:
    matrix = from_edges(np.array([2, 3, 8]), np.array([[8, 2], [2, 3]]), np.array([0.1, 0.4]))
    assert matrix.neighbours.tolist() == [3, 8, 2, 2]
    assert matrix.weights.tolist() == [0.4, 0.1, 0.4, 0.1]
    np.testing.assert_allclose(matrix.diagonal(), [0.5, 0.6, 0.9])


def test_a_lazy_matrix_is_the_mean_with_the_identity() -> None:
    agents, edges = np.arange(6), np.array([[0, 1], [1, 2], [2, 0], [3, 4]])
    lazy = metropolis(agents, edges, step=0.5).dense()
    np.testing.assert_allclose(lazy, (np.eye(6) + metropolis(agents, edges).dense()) / 2, rtol=0, atol=1e-15)


def test_directed_links_lie_in_the_row_of_the_receiver() -> None:
    """A directed ring, 2 -> 5 -> 9 -> 2: W is doubly stochastic and not symmetric."""
    links = np.array([[9, 2], [2, 5], [5, 9]])
    matrix = from_links(np.array([2, 5, 9]), links, np.array([0.25, 0.25, 0.25]))
    assert matrix.dense().tolist() == [[0.75, 0, 0.25], [0.25, 0.75, 0], [0, 0.25, 0.75]]
    assert matrix.links().tolist() == [[9, 2], [2, 5], [5, 9]]
    assert (matrix.sparse().toarray() == matrix.dense()).all()


def test_graphs_side_by_side_keep_their_weights() -> None:
    first = from_links(np.array([1, 4]), np.array([[4, 1]]), np.array([0.5]))
    second = metropolis(np.array([0, 2, 7]), np.array([[0, 7], [2, 7]]))
    both = side_by_side([first, second])
    assert both.agents.tolist() == [0, 1, 2, 4, 7]
    expected = np.zeros((5, 5))
    expected[np.ix_([1, 3], [1, 3])] = first.dense()
    expected[np.ix_([0, 2, 4], [0, 2, 4])] = second.dense()
    assert (both.dense() == expected).all()
    assert side_by_side([first]) is first


def test_arrays_are_read_only_and_the_callers_stay_writable() -> None:
    agents, edges = np.array([0, 1]), np.array([[0, 1]])
    matrix = metropolis(agents, edges)
    for array in (matrix.agents, matrix.starts, matrix.neighbours, matrix.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    agents[0] = edges[0, 0] = 0


@pytest.mark.parametrize(
    ("agents", "edges", "message"),
    [
        ([1, 0], [[0, 1]], "ascend"),
        ([0, 0, 1], [[0, 1]], "ascend"),
        ([0, 2], [[0, 1]], "doesn't have"),
        ([0, 2], [[0, 3]], "doesn't have"),
        ([0, 2], [[2, 2]], "itself"),
        ([0, 2], [[0, 2], [2, 0]], "twice"),
    ],
)
def test_what_is_no_graph_is_refused(agents: list[int], edges: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metropolis(np.array(agents), np.array(edges))
