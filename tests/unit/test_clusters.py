"""Clusters of agents: K-means against the best of all partitions, and tables that have no two clusters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.topology.clusters import clusters_of

HUNDREDTHS = st.integers(0, 100).map(lambda k: k / 100)


def spread(table: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Sum of squared distances from the means of clusters, every column divided by its maximum."""
    scaled = table / np.where(table.max(0) > 0, table.max(0), 1)
    return sum(float(((part - part.mean(0)) ** 2).sum()) for k in set(label) if len(part := scaled[label == k]))


def least_spread(table: NDArray[np.float64], count: int) -> float:
    """Of all partitions into at most `count` clusters."""
    return min(spread(table, np.array(label)) for label in product(range(count), repeat=len(table)))


def test_a_table_made_by_hand() -> None:
    """Far in the first modality, or far in the second, or in neither; the second counts in thousandths."""
    table = np.array([[0.9, 0.000], [0.1, 0.001], [1.0, 0.001], [0.1, 0.008], [0.0, 0.009], [0.1, 0.000]])
    np.testing.assert_array_equal(clusters_of(table, 3, seed=5), [0, 1, 0, 2, 2, 1])


def test_a_modality_counts_the_same_whatever_its_scale() -> None:
    table = np.random.default_rng(0).random((20, 3))
    expected = clusters_of(table, 2, seed=0)
    assert set(expected) == {0, 1}
    np.testing.assert_array_equal(clusters_of(table * [1e-9, 1, 1e3], 2, seed=0), expected)


@settings(max_examples=30)
@given(st.lists(st.tuples(HUNDREDTHS, HUNDREDTHS), min_size=1, max_size=7), st.integers(2, 3))
def test_no_partition_is_tighter(rows: list[tuple[float, float]], count: int) -> None:
    table = np.array(rows)
    label = clusters_of(table, count, seed=1)
    assert spread(table, label) <= least_spread(table, count) + 1e-5
    first = [int(np.flatnonzero(label == k)[0]) for k in range(label.max() + 1)]
    assert first == sorted(first)
    assert len(first) <= count


@pytest.mark.parametrize(
    "table",
    [np.zeros((5, 2)), np.full((4, 2), 0.3), np.full((1, 2), 0.3), 0.3 + 1e-9 * np.arange(8.0).reshape(4, 2)],
    ids=["all zero", "all equal", "one agent", "equal but for the last bits"],
)
def test_agents_that_are_alike_are_one_cluster(table: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(clusters_of(table, 2, seed=0), np.zeros(len(table)))


def test_fewer_different_rows_than_clusters() -> None:
    table = np.array([[0.2], [0.7], [0.2]])
    np.testing.assert_array_equal(clusters_of(table, 3, seed=0), [0, 1, 0])


def test_more_rows_than_one_thread_of_scikit_learn_takes_at_a_time() -> None:
    """Above 256 rows it would add up in any order."""
    table = np.random.default_rng(1).random((700, 2))
    table[::3] += [3, 0]
    labels = [clusters_of(table, 2, seed=4) for _ in range(3)]
    np.testing.assert_array_equal(labels[0], np.arange(700) % 3 != 0)
    np.testing.assert_array_equal(labels[1], labels[0])
    np.testing.assert_array_equal(labels[2], labels[0])
