"""Consensus distance: how far the holders of a slice are from their mean (method.md 1.7)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def consensus_distance(
    columns: int, block: int, rows: Callable[[slice], Array], total: Callable[[Array], Array], count: int
) -> float:
    """sqrt(mean_i |x_i - mean|^2) / |mean| over `count` agents, some of which are here.

    rows(part): the local agents' values [A, columns of part], float64; total: sum over all agents of all ranks.
    Works through the columns in blocks, so that no rank ever holds a float64 copy of everything. 0 for equal rows.
    """
    squares = np.zeros(2)  # of the differences, summed over agents; of the mean
    for start in range(0, columns, block):
        local = rows(slice(start, min(start + block, columns)))
        mean = total(local) / count
        squares[0] += total(np.square(local - mean).sum(1, keepdims=True))[0]
        squares[1] += np.square(mean).sum()
    if squares[0] == 0:
        return 0.0
    return float(np.sqrt(squares[0] / count / squares[1]))
