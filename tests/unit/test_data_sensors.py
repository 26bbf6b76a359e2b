"""Poor sensors and missing labels: the stated amount, the same for a sample wherever it turns up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parse_mpi.data.labels import UNLABELLED, known_labels
from parse_mpi.data.sensors import Sensor

NOISY = Sensor(agent=4, modality="top", noise=0.7, missing=0.0)


def test_noise_has_the_stated_deviation_and_no_bias() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 3, 5)).astype(np.float32)
    seen = NOISY.distort(x, np.arange(2000), seed=0)
    assert seen.dtype == np.float32
    noise = (seen - x) / 0.7
    assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(noise.size))
    assert noise.std() == pytest.approx(1, abs=4 / np.sqrt(2 * noise.size))
    assert np.abs(np.corrcoef(noise.reshape(2000, 15).T) - np.eye(15)).max() < 5 / np.sqrt(2000)


def test_a_missing_share_of_samples_is_zero_and_the_rest_untouched() -> None:
    x = np.ones((5000, 2, 2), np.float32)
    seen = Sensor(agent=4, modality="top", noise=0.0, missing=0.3).distort(x, np.arange(5000), seed=0)
    gone = (seen == 0).all((1, 2))
    assert (seen[~gone] == 1).all()
    assert gone.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 5000))
    everything = Sensor(agent=4, modality="top", noise=2.0, missing=1.0).distort(x, np.arange(5000), seed=0)
    assert not everything.any()
    assert (x == 1).all()


@given(index=st.lists(st.integers(0, 10**6), min_size=1, max_size=30), seed=st.integers(0, 2**60), data=st.data())
def test_what_a_sensor_does_to_a_sample_does_not_depend_on_the_batch(
    index: list[int], seed: int, data: st.DataObject
) -> None:
    sensor = Sensor(agent=2, modality="m", noise=1.5, missing=0.5)
    index_N = np.array(index)
    x = np.sin(index_N[:, None] + np.arange(6)).astype(np.float32)
    whole = sensor.distort(x, index_N, seed)
    chosen = data.draw(st.lists(st.integers(0, len(index) - 1), min_size=1))
    np.testing.assert_array_equal(sensor.distort(x[chosen], index_N[chosen], seed), whole[chosen])


def test_agents_modalities_seeds_and_samples_have_noise_of_their_own() -> None:
    x, index = np.zeros((2, 3), np.float32), np.array([0, 1])
    sensors = [Sensor(agent, m, noise=1.0, missing=0.0) for agent in range(3) for m in ("a", "b")]
    rows = [tuple(row) for s in sensors for seed in range(3) for row in s.distort(x, index, seed).tolist()]
    assert len(set(rows)) == 3 * 2 * 3 * 2


@given(count=st.integers(1, 200), fraction=st.floats(1e-6, 1.0), agent=st.integers(0, 999))
def test_the_stated_share_of_labels_is_known(count: int, fraction: float, agent: int) -> None:
    labels = np.arange(count) % 7
    known = known_labels(labels, np.arange(count), agent, fraction, seed=0)
    kept = known != UNLABELLED
    np.testing.assert_array_equal(known[kept], labels[kept])
    assert kept.sum() == max(1, round(fraction * count))
    np.testing.assert_array_equal(known_labels(labels, np.arange(count), agent, fraction, seed=0), known)
    order = np.random.default_rng(agent).permutation(count)  # in which they arrive
    np.testing.assert_array_equal(known_labels(labels[order], order, agent, fraction, seed=0), known[order])


def test_which_labels_are_known_is_drawn_anew_for_every_agent_and_seed() -> None:
    labels, samples = np.zeros(40, np.int64), np.arange(40)
    drawn = {known_labels(labels, samples, agent, 0.5, seed).tobytes() for agent in range(5) for seed in range(5)}
    assert len(drawn) == 25
    kept = np.mean([known_labels(labels, samples, agent, 0.25, 0) == 0 for agent in range(2000)], axis=0)
    np.testing.assert_allclose(kept, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 2000))
