"""Standardisation from summed moments against NumPy's mean and std of the pooled samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parse_mpi.agents.samples import Standardisation
from parse_mpi.data import dataset
from parse_mpi.data.normalise import moments, standardise


def fitted(x: NDArray[np.float32]) -> Standardisation:
    mean, scale = standardise(*moments(x, np.arange(len(x))))
    return Standardisation({"m": mean}, {"m": scale})


@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    shape=st.sampled_from([(3,), (2, 4), (2, 1, 3)]),
    offset=st.floats(-1e3, 1e3),
    seed=st.integers(0, 1000),
)
def test_moments_of_the_parts_give_the_statistics_of_the_whole(
    cuts: list[int], shape: tuple[int, ...], offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(60, *shape)) * rng.uniform(0.5, 2, size=shape) + offset).astype(np.float32)
    counts, totals, squares = zip(*(moments(x, part) for part in np.split(np.arange(60), sorted(cuts))), strict=True)
    mean, scale = standardise(sum(counts), np.sum(totals, axis=0), np.sum(squares, axis=0))
    assert mean.dtype == scale.dtype == np.float32
    assert mean.shape == scale.shape == shape
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale, wide.std(axis=0), rtol=1e-5)


def test_moments_are_float64_and_keep_the_sample_shape() -> None:
    count, total, squares = moments(np.full((100_000, 2, 3), 0.1, dtype=np.float32), np.arange(100_000))
    assert count == 100_000
    assert total.dtype == squares.dtype == np.float64
    np.testing.assert_allclose(total, 1e5 * np.float64(np.float32(0.1)), rtol=1e-12)
    np.testing.assert_allclose(squares, 1e5 * np.float64(np.float32(0.1)) ** 2, rtol=1e-10)


def test_every_feature_has_its_own_scale_whatever_its_unit() -> None:
    x = np.zeros((1000, 3), dtype=np.float32)
    x[::2], x[1::2] = [4000, 4, 0.004], [-4000, -4, -0.004]
    scaling = fitted(x)
    np.testing.assert_allclose(scaling.scale["m"], [4000, 4, 0.004], rtol=1e-6)
    np.testing.assert_allclose(np.abs(scaling.apply("m", x)), 1, rtol=1e-6)


def test_a_value_unlike_any_in_training_is_at_most_ten_standard_deviations_away() -> None:
    x = np.zeros((1000, 2), dtype=np.float32)
    x[::2], x[1::2] = 1, -1
    new = np.array([[12, 9], [-3e38, -9]], dtype=np.float32)
    np.testing.assert_allclose(fitted(x).apply("m", new), [[10, 9], [-10, -9]], rtol=1e-6)


@given(value=st.floats(-1e6, 1e6, width=32), count=st.integers(1, 3000), new=st.floats(-1e6, 1e6, width=32))
def test_a_feature_that_never_varied_is_zero_in_every_sample(value: float, count: int, new: float) -> None:
    scaling = fitted(np.full((count, 5), value, dtype=np.float32))
    np.testing.assert_array_equal(scaling.apply("m", np.full((3, 5), new, dtype=np.float32)), 0)


def test_moments_in_small_blocks_are_those_of_the_whole(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32)
    index = np.array([3, 3, 40, 7, *range(10, 35)])
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 5 * 4 * 4)
    count, total, squares = moments(x, index)
    assert count == len(index)
    np.testing.assert_allclose(total, x[index].astype(np.float64).sum(0), rtol=1e-13)
    np.testing.assert_allclose(squares, np.square(x[index].astype(np.float64)).sum(0), rtol=1e-13)
