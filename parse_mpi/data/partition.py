"""Deals the training samples to the agents: every sample to at most one agent, the same deal on every rank.

Shape suffixes: N training samples, A agents, G groups, S shards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parse_mpi.errors import DataError, counted
from parse_mpi.job import Partition
from parse_mpi.seeding import stream

NOBODY = -1


def partition(
    labels_N: NDArray[np.int64],
    agent_count: int,
    spec: Partition,
    seed: int,
    groups_N: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Per agent, in order of id, the ascending positions in `labels_N` of its samples (docs/method.md, section 9).

    Raises DataError where an agent would get fewer than `min_per_agent` samples, where by-group has no groups, and
    where the file of an explicit partition does not fit.
    """
    sample_count = len(labels_N)
    needed = agent_count * spec.min_per_agent
    if sample_count < needed:
        raise DataError(
            f"{agent_count} agents with at least {spec.min_per_agent} samples each need {needed} training samples, "
            f"the data set has {sample_count}: use fewer agents or a smaller data.partition.min_per_agent"
        )
    order_N = stream(seed, "partition").permutation(sample_count)
    if spec.kind == "by-group":
        owner_N = _group_owners(groups_N, order_N, agent_count, seed)
    elif spec.file is not None:
        owner_N = _listed_owners(Path(spec.file), sample_count, agent_count)
    elif spec.shards is not None:
        owner_N = _shard_owners(labels_N, order_N, agent_count, spec.shards, seed)
    elif spec.alpha is not None:
        owner_N = _dirichlet_owners(labels_N, agent_count, spec.alpha, seed)
        _raise_to_minimum(owner_N, order_N, agent_count, spec.min_per_agent)
    else:
        owner_N = np.empty(sample_count, dtype=np.int64)
        owner_N[order_N] = np.arange(sample_count) % agent_count

    size_A = np.bincount(owner_N[owner_N != NOBODY], minlength=agent_count)
    if size_A.min() < spec.min_per_agent:
        raise DataError(
            f"agent {size_A.argmin()} gets {counted(int(size_A.min()), 'training sample')}, fewer than "
            f"data.partition.min_per_agent: {spec.min_per_agent}, and kind: {spec.kind} does not top up: use fewer "
            "agents, another kind or a smaller min_per_agent"
        )
    by_owner_N = np.argsort(owner_N, kind="stable")[np.count_nonzero(owner_N == NOBODY) :]
    return np.split(by_owner_N, np.cumsum(size_A)[:-1])


def _group_owners(
    groups_N: NDArray[np.int64] | None, order_N: NDArray[np.int64], agent_count: int, seed: int
) -> NDArray[np.int64]:
    """With at most as many agents as groups, whole groups, the largest first, each to the agent with fewest samples.

    Otherwise every agent gets its samples from one group: the next agent is always added to the group with most samples
    per agent, and the group's samples are dealt in turn. Which agents those are is random in both cases.
    """
    if groups_N is None:
        raise DataError("kind: by-group needs the data set's /groups (subject, speaker), and it has none")
    _, group_N, size_G = np.unique(groups_N, return_inverse=True, return_counts=True)
    agents = stream(seed, "partition-group").permutation(agent_count)
    if agent_count <= len(size_G):
        owner_G = np.empty(len(size_G), dtype=np.int64)
        size_A = np.zeros(agent_count, dtype=np.int64)
        for group in np.argsort(-size_G, kind="stable"):
            owner_G[group] = poorest = agents[size_A[agents].argmin()]
            size_A[poorest] += size_G[group]
        return owner_G[group_N]
    agents_G = np.ones(len(size_G), dtype=np.int64)
    for _ in range(agent_count - len(size_G)):
        agents_G[(size_G / agents_G).argmax()] += 1
    owner_N = np.empty(len(groups_N), dtype=np.int64)
    for group, owners in enumerate(np.split(agents, np.cumsum(agents_G)[:-1])):
        members = order_N[group_N[order_N] == group]
        owner_N[members] = owners[np.arange(len(members)) % len(owners)]
    return owner_N


def _shard_owners(
    labels_N: NDArray[np.int64], order_N: NDArray[np.int64], agent_count: int, shards: int, seed: int
) -> NDArray[np.int64]:
    """Samples sorted by class are cut into shards of as equal size as can be, and each agent gets `shards` of them
    (McMahan et al. 2017)."""
    if agent_count * shards > len(labels_N):
        raise DataError(
            f"{agent_count} agents with {counted(shards, 'shard')} each need {agent_count * shards} training samples, "
            f"the data set has {len(labels_N)}: use fewer agents or a smaller data.partition.shards"
        )
    owner_S = stream(seed, "partition-shards").permutation(np.repeat(np.arange(agent_count), shards))
    by_class_N = order_N[np.argsort(labels_N[order_N], kind="stable")]
    owner_N = np.empty(len(labels_N), dtype=np.int64)
    owner_N[by_class_N] = owner_S[np.arange(len(labels_N)) * len(owner_S) // len(labels_N)]
    return owner_N


def _listed_owners(path: Path, sample_count: int, agent_count: int) -> NDArray[np.int64]:
    """What a text file says: line n is the owner of training sample n, in the order of the data set."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read as text ({error})") from error
    if len(lines) != sample_count:
        raise DataError(
            f"{path}: has {counted(len(lines), 'line')}, the data set {counted(sample_count, 'training sample')}; one "
            f"agent id per sample is expected, {NOBODY} for nobody"
        )
    known = {str(owner): owner for owner in range(NOBODY, agent_count)}
    owners = [known.get(line.strip()) for line in lines]
    if None in owners:
        n = owners.index(None)
        raise DataError(
            f"{path}:{n + 1}: {lines[n]!r} is no agent; ids go from 0 to {agent_count - 1}, {NOBODY}: nobody"
        )
    return np.array(owners, dtype=np.int64)


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
