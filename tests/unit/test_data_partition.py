"""Partitions: every sample at most once, the stated skew, and the top-up against one that moves sample by sample."""

from __future__ import annotations

import heapq
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.data.partition import _level_off, partition
from parse_mpi.errors import DataError
from parse_mpi.job import Partition

IID = Partition()
BY_GROUP = Partition(kind="by-group", min_per_agent=1)


def dirichlet(alpha: float, min_per_agent: int = 1) -> Partition:
    return Partition(kind="dirichlet", alpha=alpha, min_per_agent=min_per_agent)


def class_shares(labels: NDArray[np.int64], parts: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Per agent and class, the share of the class's samples that the agent holds."""
    counts = np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])
    shares: NDArray[np.float64] = counts / counts.sum(axis=0)
    return shares


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    agent_count=st.integers(1, 20),
    alpha=st.one_of(st.none(), st.floats(1e-9, 1e6)),
    min_per_agent=st.integers(1, 8),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_every_sample_goes_to_exactly_one_agent(
    labels: list[int], agent_count: int, alpha: float | None, min_per_agent: int, seed: int
) -> None:
    spec = Partition(kind="iid" if alpha is None else "dirichlet", alpha=alpha, min_per_agent=min_per_agent)
    if len(labels) < agent_count * min_per_agent:
        with pytest.raises(DataError, match=f"need {agent_count * min_per_agent} training samples.* {len(labels)}"):
            partition(np.array(labels), agent_count, spec, seed)
        return
    parts = partition(np.array(labels), agent_count, spec, seed)
    assert len(parts) == agent_count
    assert all(part.dtype == np.int64 and len(part) >= min_per_agent for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    again = partition(np.array(labels), agent_count, spec, seed)
    assert all(np.array_equal(part, same) for part, same in zip(parts, again, strict=True))


def test_iid_sizes_differ_by_at_most_one_and_labels_are_mixed() -> None:
    labels = np.repeat(np.arange(4), 2500)
    parts = partition(labels, 30, IID, seed=0)
    assert {len(part) for part in parts} == {333, 334}
    shares = class_shares(labels, parts)
    np.testing.assert_allclose(shares, 1 / 30, atol=4 * np.sqrt(1 / 30 / 2500))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 2.0])
def test_dirichlet_shares_have_the_moments_of_the_distribution(alpha: float) -> None:
    """Each share is Beta(alpha, (A - 1) alpha): mean 1/A, variance (A - 1) / (A^2 (A alpha + 1))."""
    agent_count, class_count = 10, 400
    labels = np.tile(np.arange(class_count), 200)
    shares = class_shares(labels, partition(labels, agent_count, dirichlet(alpha), seed=1))
    np.testing.assert_allclose(shares.mean(axis=1), 1 / agent_count, rtol=0.35)
    variance = (agent_count - 1) / (agent_count**2 * (agent_count * alpha + 1))
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_large_alpha_is_even_class_by_class_and_small_alpha_gives_a_class_to_one_agent() -> None:
    labels = np.tile(np.arange(5), 1000)
    np.testing.assert_allclose(class_shares(labels, partition(labels, 10, dirichlet(1e6), seed=0)), 0.1, atol=0.002)
    assert class_shares(labels, partition(labels, 10, dirichlet(1e-4), seed=0)).max(axis=0).min() > 0.99


def test_few_samples_of_a_class_are_not_always_dealt_to_the_same_agents() -> None:
    """With fewer samples in a class than agents, expected counts must still be equal over agents."""
    labels = np.repeat(np.arange(500), 3)
    sizes = [len(part) for part in partition(labels, 10, dirichlet(1e4), seed=0)]
    np.testing.assert_allclose(sizes, 150, atol=4 * np.sqrt(150))


def test_seeds_give_different_partitions() -> None:
    labels = np.tile(np.arange(5), 20)
    for spec in (IID, dirichlet(0.5)):
        one, other = (partition(labels, 4, spec, seed) for seed in (0, 1))
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=12), data=st.data())
def test_levelling_takes_from_the_largest_one_by_one(sizes: list[int], data: st.DataObject) -> None:
    amount = data.draw(st.integers(0, sum(sizes)))
    heap = [(-size, agent) for agent, size in enumerate(sizes)]
    heapq.heapify(heap)
    given_away = [0] * len(sizes)
    for _ in range(amount):
        size, agent = heapq.heappop(heap)
        given_away[agent] += 1
        heapq.heappush(heap, (size + 1, agent))
    assert _level_off(np.array(sizes), amount).tolist() == given_away


def test_topping_up_moves_no_more_samples_than_are_missing() -> None:
    labels = np.tile(np.arange(10), 60)
    before = partition(labels, 30, dirichlet(0.1, min_per_agent=1), seed=4)
    after = partition(labels, 30, dirichlet(0.1, min_per_agent=8), seed=4)
    missing = sum(max(8 - len(part), 0) for part in before)
    gained = sum(len(np.setdiff1d(new, old)) for old, new in zip(before, after, strict=True))
    assert missing > 0
    assert gained <= missing + 30  # the first partition itself topped up empty agents, by one sample each
    assert max(map(len, after)) <= max(map(len, before))


def test_samples_given_away_are_a_random_choice() -> None:
    """One agent owns everything at first; what the other gets must not be the head of the file."""
    parts = partition(np.zeros(1000, dtype=np.int64), 2, dirichlet(1e-6, min_per_agent=300), seed=0)
    poor = min(parts, key=len)
    assert len(poor) == 300
    assert poor.mean() == pytest.approx(500, abs=4 * 1000 / np.sqrt(12 * 300))


def test_ten_thousand_agents_take_seconds() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    start = time.perf_counter()
    parts = partition(labels, 10_000, dirichlet(0.1, min_per_agent=4), seed=0)
    assert time.perf_counter() - start < 2
    assert min(map(len, parts)) == 4


@given(
    groups=st.lists(st.integers(-3, 9), min_size=1, max_size=80),
    agent_count=st.integers(1, 14),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_by_group_splits_groups_only_where_agents_outnumber_them(
    groups: list[int], agent_count: int, seed: int
) -> None:
    groups_N = np.array(groups)
    group_count = len(set(groups))
    labels_N = np.zeros(len(groups), np.int64)
    if len(groups) < agent_count:
        with pytest.raises(DataError, match=f"need {agent_count} training samples"):
            partition(labels_N, agent_count, BY_GROUP, seed, groups_N)
        return
    parts = partition(labels_N, agent_count, BY_GROUP, seed, groups_N)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    held = [set(groups_N[part].tolist()) for part in parts]
    owners = {g: [agent for agent, own in enumerate(held) if g in own] for g in set(groups)}
    if agent_count <= group_count:
        assert all(len(agents) == 1 for agents in owners.values())
    else:
        assert all(len(own) == 1 for own in held)
        for agents in owners.values():
            sizes = [len(parts[agent]) for agent in agents]
            assert max(sizes) - min(sizes) <= 1


def test_by_group_balances_samples() -> None:
    """Groups of 4, 3, 3, 2, 2, 2 for three agents, the largest first to whoever has least: 6, 5 and 5."""
    groups_N = np.repeat(np.arange(6), [2, 3, 2, 4, 3, 2])
    parts = partition(np.zeros(16, np.int64), 3, BY_GROUP, 0, groups_N)
    assert sorted(map(len, parts)) == [5, 5, 6]
    uneven = np.repeat([0, 1], [90, 30])
    assert {len(part) for part in partition(np.zeros(120, np.int64), 8, BY_GROUP, 0, uneven)} == {15}
    sets = {tuple(map(tuple, partition(np.zeros(16, np.int64), 3, BY_GROUP, seed, groups_N))) for seed in range(8)}
    assert len(sets) > 1


def test_by_group_needs_groups_and_enough_samples_in_each() -> None:
    with pytest.raises(DataError, match="by-group needs the data set's /groups"):
        partition(np.zeros(9, np.int64), 2, BY_GROUP, 0)
    spec = Partition(kind="by-group", min_per_agent=3)
    with pytest.raises(
        DataError, match=r"agent \d gets 1 training sample, fewer than .*min_per_agent: 3, and .*by-group"
    ):
        partition(np.zeros(9, np.int64), 2, spec, 0, np.array([0] * 8 + [1]))


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    agent_count=st.integers(1, 12),
    shards=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=200, deadline=None)
def test_label_shards_are_pieces_of_the_sorted_samples(
    labels: list[int], agent_count: int, shards: int, seed: int
) -> None:
    spec = Partition(kind="label-shard", shards=shards, min_per_agent=1)
    if len(labels) < agent_count * shards:
        with pytest.raises(DataError, match="need"):  # some shards would be empty, and classes no longer few
            partition(np.array(labels), agent_count, spec, seed)
        return
    labels_N = np.array(labels)
    parts = partition(labels_N, agent_count, spec, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    lengths = {len(piece) for piece in np.array_split(labels_N, agent_count * shards)}
    assert all(shards * min(lengths) <= len(part) <= shards * max(lengths) for part in parts)
    # Each of an agent's shards is an interval of the sorted labels: it ends in at most one class more than it begins.
    cuts = len(set(labels)) - 1
    assert sum(len(set(labels_N[part].tolist())) for part in parts) <= agent_count * shards + cuts


def test_two_shards_an_agent_give_two_classes() -> None:
    labels_N = np.tile(np.arange(10), 60)
    parts = partition(labels_N, 30, Partition(kind="label-shard", shards=2), seed=0)
    assert {len(part) for part in parts} == {20}
    assert {len(set(labels_N[part].tolist())) for part in parts} == {1, 2}


def explicit(file: Path, min_per_agent: int = 1) -> Partition:
    return Partition(kind="explicit", file=str(file), min_per_agent=min_per_agent)


@given(owners=st.lists(st.integers(-1, 4), min_size=5, max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_explicit_partition_is_what_the_file_says(tmp_path: Path, owners: list[int]) -> None:
    file = tmp_path / "owners.txt"
    file.write_text("".join(f"{owner}\n" for owner in owners))
    labels_N = np.zeros(len(owners), np.int64)
    if set(range(5)) - set(owners):
        with pytest.raises(DataError, match=r"gets 0 training samples, fewer than .*kind: explicit"):
            partition(labels_N, 5, explicit(file), 0)
        return
    parts = partition(labels_N, 5, explicit(file), 0)
    assert [part.tolist() for part in parts] == [[n for n, o in enumerate(owners) if o == agent] for agent in range(5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n1\n0\n", "has 3 lines, the data set 4 training samples; one agent id per sample"),
        ("0\n1\n2\n0\n", "owners.txt:3: '2' is no agent; ids go from 0 to 1, -1: nobody"),
        ("0\n1\n\n0\n", "owners.txt:3: '' is no agent"),
        ("0\n1\n0.0\n0\n", "owners.txt:3: '0.0' is no agent"),
        ("0\n-2\n1\n0\n", "owners.txt:2: '-2' is no agent"),
        ("\xff", "can't be read as text"),
    ],
)
def test_a_wrong_line_of_an_explicit_partition_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "owners.txt"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        partition(np.zeros(4, np.int64), 2, explicit(file), 0)
