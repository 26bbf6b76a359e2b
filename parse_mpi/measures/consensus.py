"""How far the holders of a slice are from their mean (method.md 1.7), and how far personal weights move it (4)."""

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


def mean_drift(
    columns: int, block: int, pair: Callable[[slice], tuple[Array, Array]], total: Callable[[Array], Array]
) -> float:
    """|mean of what became of rows - mean of rows| / |mean of rows|.

    pair(part): the local agents' rows and what became of them [A, columns of part], float64; total: sum over all agents
    of all ranks.
    """
    squares = np.zeros(2)  # of the sums over agents: of the change, and of the rows
    for start in range(0, columns, block):
        before, after = pair(slice(start, min(start + block, columns)))
        squares[0] += np.square(total(after - before)).sum()
        squares[1] += np.square(total(before)).sum()
    return float(np.sqrt(squares[0] / squares[1])) if squares[0] else 0.0
