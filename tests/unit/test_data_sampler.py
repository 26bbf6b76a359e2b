"""The sampler against one that handles one agent at a time, and its independence of the group and of the order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.data.sampler import Sampler
from parse_mpi.seeding import random_keys

agents_with_sizes = st.dictionaries(st.integers(0, 10_000), st.integers(1, 40), min_size=1, max_size=8)


def reference_batch(seed: int, agent: int, size: int, batch_size: int, step: int) -> NDArray[np.int64]:
    """The true batch of one agent, from a textbook epoch loop."""
    at = 0
    count = math.ceil(size / batch_size)
    for epoch in range(step + 1):
        keys = random_keys(seed, "batches", np.array(agent), np.array(epoch), np.arange(size))
        permutation = [sample for _, sample in sorted(zip(keys.tolist(), range(size), strict=True))]
        for turn in range(count):
            if at == step:
                return np.array(permutation[turn * size // count : (turn + 1) * size // count])
            at += 1
    raise AssertionError("every epoch has a batch")


@given(
    sizes=agents_with_sizes,
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**60),
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_batches_are_those_of_a_loop_over_agents_in_any_order_of_steps(
    sizes: dict[int, int], batch_size: int, seed: int, steps: list[int]
) -> None:
    sampler = Sampler(np.array(list(sizes.values())), np.array(list(sizes)), batch_size, seed)
    widest = max(math.ceil(size / math.ceil(size / batch_size)) for size in sizes.values())
    for step in steps:
        position_AB, mask_AB = sampler.batch(step)
        assert position_AB.shape == mask_AB.shape == (len(sizes), widest)
        assert position_AB.dtype == np.int64
        assert mask_AB.dtype == np.bool_
        for row, (agent, size) in enumerate(sizes.items()):
            expected = reference_batch(seed, agent, size, batch_size, step)
            np.testing.assert_array_equal(position_AB[row, : len(expected)], expected)
            assert mask_AB[row].tolist() == [column < len(expected) for column in range(widest)]
            assert (position_AB[row, len(expected) :] == expected[0]).all()


@given(sizes=agents_with_sizes, step=st.integers(0, 10**6), data=st.data())
def test_an_agent_sees_the_same_batch_in_any_group(sizes: dict[int, int], step: int, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, unique=True))
    whole = Sampler(np.array(list(sizes.values())), np.array(list(sizes)), 8, seed=1).batch(step)
    part = Sampler(np.array([sizes[agent] for agent in chosen]), np.array(chosen), 8, seed=1).batch(step)
    rows = [list(sizes).index(agent) for agent in chosen]
    width = part[0].shape[1]
    for everybody, some in zip(whole, part, strict=True):
        np.testing.assert_array_equal(everybody[rows][:, :width], some)
    assert not whole[1][rows][:, width:].any()


@given(size=st.integers(1, 50), batch_size=st.integers(1, 60), epoch=st.integers(0, 5))
def test_an_epoch_shows_every_sample_once(size: int, batch_size: int, epoch: int) -> None:
    sampler = Sampler(np.array([size]), np.array([3]), batch_size, seed=0)
    batches_per_epoch = -(-size // min(batch_size, size))
    seen = []
    for step in range(epoch * batches_per_epoch, (epoch + 1) * batches_per_epoch):
        position_AB, mask_AB = sampler.batch(step)
        seen += position_AB[mask_AB].tolist()
    assert sorted(seen) == list(range(size))


@given(size=st.integers(1, 500), batch_size=st.integers(1, 60))
def test_batches_of_an_epoch_are_as_few_and_as_equal_as_can_be(size: int, batch_size: int) -> None:
    sampler = Sampler(np.array([size]), np.array([0]), batch_size, seed=0)
    sizes = [int(sampler.batch(step)[1].sum()) for step in range(math.ceil(size / batch_size))]
    assert sum(sizes) == size
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_size_beyond_all_samples_costs_nothing() -> None:
    sizes, agents = np.array([210, 33, 1]), np.arange(3)
    position_AB, mask_AB = Sampler(sizes, agents, 100_000, seed=0).batch(5)
    assert position_AB.shape == (3, 210)
    assert mask_AB.sum(axis=1).tolist() == sizes.tolist()
    np.testing.assert_array_equal(position_AB, Sampler(sizes, agents, 210, seed=0).batch(5)[0])


def test_epochs_agents_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, agent: int, epoch: int) -> tuple[int, ...]:
        return tuple(Sampler(np.array([30]), np.array([agent]), 30, seed).batch(epoch)[0][0].tolist())

    orders = {order(seed, agent, epoch) for seed in range(4) for agent in range(4) for epoch in range(4)}
    assert len(orders) == 64


def test_permutations_are_uniform() -> None:
    """Over many agents each of the 24 orders of 4 samples comes up equally often (chi-square, 23 degrees)."""
    agent_count = 24_000
    position_AB, _ = Sampler(np.full(agent_count, 4), np.arange(agent_count), 4, seed=0).batch(0)
    _, counts = np.unique(position_AB, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 49.7  # exceeded with probability .001


def test_an_agent_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="agent 7 "):
        Sampler(np.array([3, 0]), np.array([5, 7]), 2, seed=0)
