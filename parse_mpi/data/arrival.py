"""Stream mode: which of an agent's samples have arrived in which round.

An agent's samples stand in the order of their arrival, so that those that have arrived are the first ones.

Shape suffixes: A agents, N samples of one agent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.job import Stream
from parse_mpi.seeding import stream as random_stream

FEWEST = 2  # samples at the start, where an agent has that many: one alone has no negative in the contrastive term


def arrived(sizes_A: NDArray[np.int64], stream: Stream | None, round_index: int) -> NDArray[np.int64]:
    """How many samples of agents with `sizes` [A] are there in a round, counted from 0; all without a stream."""
    if stream is None:
        return sizes_A
    start_A = np.minimum(sizes_A, np.maximum(FEWEST, np.round(stream.start * sizes_A).astype(np.int64)))
    return start_A + (sizes_A - start_A) * min(round_index, stream.rounds) // stream.rounds


def arrival_order(labels_N: NDArray[np.int64], agent: int, stream: Stream, seed: int) -> NDArray[np.int64]:
    """The positions of an agent's samples in the order in which they arrive."""
    order_N = random_stream(seed, "arrival", agent).permutation(len(labels_N))
    if stream.order == "by-class":
        order_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
    return order_N
