"""Standardisation from summed moments against NumPy's mean and std of the pooled samples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parse_mpi.data import dataset
from parse_mpi.data.normalise import moments, standardise


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


def test_features_that_hardly_vary_are_floored_at_a_tenth_of_the_root_mean_square() -> None:
    x = np.zeros((1000, 4), dtype=np.float32)
    x[::2, 0], x[1::2, 0] = 4, -4
    x[0, 1] = 0.01
    mean, scale = standardise(*moments(x, np.arange(len(x))))
    floor = 0.1 * np.sqrt((16 + x[:, 1].var()) / 4)
    np.testing.assert_allclose(scale, [4, floor, floor, floor], rtol=1e-5)
    np.testing.assert_allclose(mean, [0, 1e-5, 0, 0], atol=1e-9)


@given(value=st.floats(-1e6, 1e6, width=32), count=st.integers(1, 3000))
def test_a_constant_modality_is_only_centred(value: float, count: int) -> None:
    x = np.full((count, 5), value, dtype=np.float32)
    mean, scale = standardise(*moments(x, np.arange(len(x))))
    np.testing.assert_array_equal((x - mean) / scale, 0)
    np.testing.assert_array_equal(scale, 1)


def test_moments_in_small_blocks_are_those_of_the_whole(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(3, 2, size=(50, 4)).astype(np.float32)
    index = np.array([3, 3, 40, 7, *range(10, 35)])
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 5 * 4 * 4)
    count, total, squares = moments(x, index)
    assert count == len(index)
    np.testing.assert_allclose(total, x[index].astype(np.float64).sum(0), rtol=1e-13)
    np.testing.assert_allclose(squares, np.square(x[index].astype(np.float64)).sum(0), rtol=1e-13)
