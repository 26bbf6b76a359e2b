"""Samples that arrive over the rounds: how many, in which order, and batches of what has arrived."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_mpi.data.arrival import arrival_order, arrived
from parse_mpi.data.sampler import StreamSampler
from parse_mpi.job import Stream
from parse_mpi.seeding import random_keys

streams = st.builds(Stream, start=st.floats(0.01, 1), rounds=st.integers(1, 30))
agents_with_sizes = st.dictionaries(st.integers(0, 10_000), st.integers(1, 40), min_size=1, max_size=8)


def test_samples_arrive_evenly() -> None:
    stream = Stream(start=0.2, rounds=4)
    counts = [arrived(np.array([100, 10, 3, 1]), stream, t).tolist() for t in range(7)]
    assert counts[0] == [20, 2, 2, 1]
    assert [count[0] for count in counts] == [20, 40, 60, 80, 100, 100, 100]
    assert [count[1] for count in counts] == [2, 4, 6, 8, 10, 10, 10]
    assert arrived(np.array([7]), None, 0).tolist() == [7]


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=5), stream=streams)
def test_nothing_that_has_arrived_is_lost_and_all_arrives(sizes: list[int], stream: Stream) -> None:
    counts = np.array([arrived(np.array(sizes), stream, t) for t in range(stream.rounds + 2)])
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (counts[0] >= np.minimum(sizes, 2)).all()
    assert (counts[-2:] == sizes).all()


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), agent=st.integers(0, 99), seed=st.integers(0, 2**40)
)
def test_orders_of_arrival(labels: list[int], agent: int, seed: int) -> None:
    labels_N = np.array(labels)
    by_chance = arrival_order(labels_N, agent, Stream(), seed)
    by_class = arrival_order(labels_N, agent, Stream(order="by-class"), seed)
    assert sorted(by_chance.tolist()) == sorted(by_class.tolist()) == list(range(len(labels)))
    assert labels_N[by_class].tolist() == sorted(labels)
    for label in set(labels):
        among_equals = [n for n in by_chance.tolist() if labels[n] == label]
        assert [n for n in by_class.tolist() if labels[n] == label] == among_equals


def test_agents_and_seeds_have_orders_of_their_own() -> None:
    labels = np.zeros(30, np.int64)
    orders = {tuple(arrival_order(labels, agent, Stream(), seed)) for agent in range(5) for seed in range(5)}
    assert len(orders) == 25


@given(
    sizes=agents_with_sizes,
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**60),
    stream=streams,
    local_steps=st.integers(1, 4),
    steps=st.lists(st.integers(0, 130), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_batches_are_choices_of_what_has_arrived(
    sizes: dict[int, int], batch_size: int, seed: int, stream: Stream, local_steps: int, steps: list[int]
) -> None:
    """Against one agent at a time: the arrived samples with the smallest random keys, none twice, in any order of
    steps."""
    made = StreamSampler(np.array(list(sizes.values())), np.array(list(sizes)), batch_size, seed, stream, local_steps)
    for step in steps:
        position_AB, mask_AB = made.batch(step)
        assert position_AB.shape == mask_AB.shape == (len(sizes), max(min(size, batch_size) for size in sizes.values()))
        for row, (agent, size) in enumerate(sizes.items()):
            [there] = arrived(np.array([size]), stream, step // local_steps).tolist()
            keys = random_keys(seed, "stream", np.array(agent), np.array(step), np.arange(there))
            expected = np.argsort(keys, kind="stable")[: min(there, batch_size)].tolist()
            assert position_AB[row][mask_AB[row]].tolist() == expected
            assert mask_AB[row].tolist() == sorted(mask_AB[row].tolist(), reverse=True)
            assert set(position_AB[row][~mask_AB[row]].tolist()) <= {expected[0]}


def test_every_arrived_sample_is_chosen_equally_often() -> None:
    """Over many agents and 10 of 20 samples each: chi-square with 19 degrees."""
    agent_count = 4000
    sampler = StreamSampler(np.full(agent_count, 40), np.arange(agent_count), 10, 0, Stream(start=0.5, rounds=9), 1)
    counts = np.bincount(sampler.batch(0)[0].ravel(), minlength=40)
    assert counts[20:].sum() == 0
    expected = agent_count / 2
    assert ((counts[:20] - expected) ** 2 / (expected / 2)).sum() * 19 / 20 < 43.8  # exceeded with probability .001


def test_an_agent_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="agent 7 "):
        StreamSampler(np.array([3, 0]), np.array([5, 7]), 2, 0, Stream(), 1)
