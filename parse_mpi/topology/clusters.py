"""Agents that are alike in some measure put together: K-means on a small table (docs/method.md, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STARTS = 10
DECIMALS = 6  # of a value between 0 and 1 that count: what the last bits of sums say decides nothing


def clusters_of(table_AF: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    """The cluster of every row by K-means, int64 [A], numbered in the order of their first rows.

    table_AF: not negative; every column is divided by its maximum first. count: at most so many clusters; rows that are
    all alike, or too few, make fewer.
    """
    largest = table_AF.max(0, initial=0.0)
    scaled = np.round(table_AF / np.where(largest > 0, largest, 1.0), DECIMALS)
    count = min(count, len(np.unique(scaled, axis=0)))
    if count < 2:
        return np.zeros(len(table_AF), np.int64)
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # several threads add up in any order
        label = KMeans(count, n_init=STARTS, random_state=seed % 2**32).fit_predict(scaled)
    _, first, cluster = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[cluster]
