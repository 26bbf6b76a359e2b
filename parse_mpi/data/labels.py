"""Which labels an agent knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import stream

UNLABELLED = -1


def known_labels(
    labels_N: NDArray[np.int64], samples_N: NDArray[np.int64], agent: int, fraction: float, seed: int
) -> NDArray[np.int64]:
    """An agent's labels [N], with UNLABELLED for all but a random share of them; at least one is kept.

    samples_N: which samples of the data set they are. The order in which they arrive makes no difference.
    """
    drawn = stream(seed, "labelled", agent).permutation(len(labels_N))[: max(1, round(fraction * len(labels_N)))]
    kept = np.argsort(samples_N)[drawn]
    known_N = np.full_like(labels_N, UNLABELLED)
    known_N[kept] = labels_N[kept]
    return known_N
