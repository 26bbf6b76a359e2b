"""Base-(k+1): the exact mean for any number of agents, with at most k neighbours, in no more rounds than proven."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from parse_mpi.topology.base_k import Round, base_graph


def dense(current: Round, count: int) -> NDArray[np.float64]:
    matrix = np.eye(count)
    for (i, j), weight in zip(current.all_edges().tolist(), current.all_weights().tolist(), strict=True):
        matrix[i, j] += weight
        matrix[j, i] += weight
        matrix[i, i] -= weight
        matrix[j, j] -= weight
    return matrix


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(1, 41))
def test_everyone_has_the_exact_mean_after_one_cycle(count: int, k: int) -> None:
    product = np.eye(count)
    rounds = base_graph(count, k)
    for current in rounds:
        matrix = dense(current, count)
        assert (matrix >= -1e-15).all()
        assert ((matrix > 0) & ~np.eye(count, dtype=bool)).sum(axis=1).max() <= k
        product = matrix @ product
    np.testing.assert_allclose(product, 1 / count, rtol=0, atol=1e-14)
    needed = next(power for power in range(count) if (k + 1) ** power >= count)
    assert needed <= len(rounds) <= 2 * needed + 2


@pytest.mark.parametrize(("count", "k", "rounds"), [(8, 1, 3), (9, 2, 2), (12, 3, 2), (5, 4, 1), (5, 1, 5), (30, 1, 8)])
def test_as_many_rounds_as_factors_and_else_a_few_more(count: int, k: int, rounds: int) -> None:
    """5 = 4 + 1: two rounds in the four, one to join, two in the four. 30 = 2 x 15, 15 = 8 + 4 + 2 + 1 in seven."""
    assert len(base_graph(count, k)) == rounds


def test_five_agents_by_hand() -> None:
    """0 to 3 average, then 0 and 4 so that the four have 4/5 of the sum, then 0 to 3 average again."""
    steps = [
        sorted((i, j, w) for (i, j), w in zip(r.all_edges().tolist(), r.all_weights(), strict=True))
        for r in base_graph(5, 1)
    ]
    pairs = [(0, 1, 0.5), (2, 3, 0.5)], [(0, 2, 0.5), (1, 3, 0.5)]
    assert steps == [*pairs, [(0, 4, 0.8)], *pairs]
