"""Accuracy and consensus distance against their definitions."""

import numpy as np
import pytest

from parse_mpi.measures.accuracy import accuracies
from parse_mpi.measures.consensus import consensus_distance


def test_global_and_local_accuracy():
    """Two classes with 10 and 30 test samples; one agent trained on class 0 only, one on both evenly."""
    correct = np.array([[9, 3], [9, 3]])
    made = accuracies(correct, np.array([10, 30]), np.array([[5, 0], [4, 4]]))
    np.testing.assert_allclose(made[:, 0], 12 / 40)
    np.testing.assert_allclose(made[:, 1], [0.9, (0.9 + 0.1) / 2])


def test_a_class_that_the_split_lacks_does_not_count():
    made = accuracies(np.array([[8, 0]]), np.array([10, 0]), np.array([[1, 9]]))
    np.testing.assert_allclose(made, [[0.8, 0.8]])
    assert np.isnan(accuracies(np.array([[8, 0]]), np.array([10, 0]), np.array([[0, 9]]))[0, 1])


@pytest.mark.parametrize("block", [1, 3, 100])
def test_consensus_distance_is_its_definition_in_any_blocks(block):
    x = np.random.default_rng(0).normal(size=(5, 7)) + 3
    mean = x.mean(0)
    expected = np.sqrt(np.square(x - mean).sum(1).mean()) / np.linalg.norm(mean)
    made = consensus_distance(7, block, lambda part: x[:, part], lambda values: values.sum(0), 5)
    assert made == pytest.approx(expected, rel=1e-12)


def test_equal_rows_are_at_distance_zero_even_at_the_origin():
    x = np.zeros((3, 4))
    assert consensus_distance(4, 2, lambda part: x[:, part], lambda values: values.sum(0), 3) == 0.0
