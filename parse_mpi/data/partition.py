"""Deals the training samples to the agents: every sample to exactly one agent, the same deal on every rank.

Shape suffixes: N training samples, A agents.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.errors import DataError
from parse_mpi.job import Partition
from parse_mpi.seeding import stream


def partition(labels_N: NDArray[np.int64], agent_count: int, spec: Partition, seed: int) -> list[NDArray[np.int64]]:
    """Per agent, in order of id, the ascending positions in `labels_N` of its samples.

    iid: shuffled and dealt in turn, so that sizes differ by at most one. dirichlet: every class is dealt in
    proportions drawn from a symmetric Dirichlet(alpha) (Hsu, Qi and Brown 2019). Then agents with fewer than
    `min_per_agent` samples are given the missing ones by those who have most.

    Raises DataError when there are too few samples for all agents.
    """
    sample_count = len(labels_N)
    needed = agent_count * spec.min_per_agent
    if sample_count < needed:
        raise DataError(
            f"{agent_count} agents with at least {spec.min_per_agent} samples each need {needed} training samples, "
            f"the data set has {sample_count}: use fewer agents or a smaller data.partition.min_per_agent"
        )
    order_N = stream(seed, "partition").permutation(sample_count)
    if spec.alpha is None:
        owner_N = np.empty(sample_count, dtype=np.int64)
        owner_N[order_N] = np.arange(sample_count) % agent_count
    else:
        owner_N = _dirichlet_owners(labels_N, agent_count, spec.alpha, seed)
        _raise_to_minimum(owner_N, order_N, agent_count, spec.min_per_agent)

    size_A = np.bincount(owner_N, minlength=agent_count)
    assert size_A.sum() == sample_count
    assert size_A.min() >= spec.min_per_agent
    by_owner_N = np.argsort(owner_N, kind="stable")
    return np.split(by_owner_N, np.cumsum(size_A)[:-1])


def _dirichlet_owners(labels_N: NDArray[np.int64], agent_count: int, alpha: float, seed: int) -> NDArray[np.int64]:
    """The owner of every sample, class by class.

    Systematic sampling: n evenly spaced points with one random offset fall on the agents' shares laid end to end, so
    that an agent's count is within one of n times its share, and equal to it in expectation.
    """
    owner_N = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        rng = stream(seed, "partition-class", int(label))
        members = rng.permutation(np.flatnonzero(labels_N == label))
        share_ends_A = np.cumsum(rng.dirichlet(np.full(agent_count, alpha)))
        points = (np.arange(len(members)) + rng.random()) / len(members)
        owner_N[members] = np.minimum(np.searchsorted(share_ends_A, points, side="right"), agent_count - 1)
    return owner_N


def _raise_to_minimum(owner_N: NDArray[np.int64], order_N: NDArray[np.int64], agent_count: int, minimum: int) -> None:
    """Changes owners in place until everybody has `minimum` samples, as if the missing ones were taken one by one
    from whoever has most at that moment; `order_N` is the random order in which an agent's samples are given away."""
    size_A = np.bincount(owner_N, minlength=agent_count)
    missing_A = np.maximum(minimum - size_A, 0)
    given_A = _level_off(size_A, int(missing_A.sum()))
    shuffled_by_owner_N = order_N[np.argsort(owner_N[order_N], kind="stable")]
    rank_N = np.arange(len(owner_N)) - np.repeat(np.cumsum(size_A) - size_A, size_A)
    given = shuffled_by_owner_N[rank_N < np.repeat(given_A, size_A)]
    owner_N[given] = np.repeat(np.arange(agent_count), missing_A)


def _level_off(size_A: NDArray[np.int64], amount: int) -> NDArray[np.int64]:
    """How many of `amount` samples each agent gives when always one with most gives the next; of equals, the
    lowest ids give first."""
    low, high = 0, int(size_A.max())  # the level that the largest sink to: the highest at which enough is given
    while low < high:
        middle = (low + high + 1) // 2
        if np.maximum(size_A - middle, 0).sum() >= amount:
            low = middle
        else:
            high = middle - 1
    given_A = np.maximum(size_A - low, 0)
    surplus = int(given_A.sum()) - amount
    last_givers = np.flatnonzero(given_A)[::-1][:surplus]
    given_A[last_givers] -= 1
    return given_A
