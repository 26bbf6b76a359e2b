"""The data set type, the built-in digits, and the way from a job's data section to either."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.linear_model import LogisticRegression

from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from parse_mpi.data.digits import load_digits
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.partition import partition
from parse_mpi.data.pid import generate_pid
from parse_mpi.data.sources import load_dataset
from parse_mpi.job import Data, DigitsSource, Hdf5Source, Partition, PidSource, PidSourceKey
from parse_mpi.job.data import Digits

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"
SHARED_FILES = sorted(SHARED_DATA.glob("*.h5"))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits(seed=0)


def test_digits_halves_put_together_are_the_images(digits: Dataset) -> None:
    images = np.concatenate([digits.modalities["top"], digits.modalities["bottom"]], axis=1)
    np.testing.assert_array_equal(images * 16, sklearn_digits().images)
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in digits.modalities.values())
    assert digits.labels.dtype == np.int64
    assert digits.split.dtype == np.uint8


def test_digits_quadrants_put_together_are_the_halves(digits: Dataset) -> None:
    quadrants = load_dataset(Data(source=DigitsSource(digits=Digits(cut="quadrants"))), seed=0)
    assert list(quadrants.modalities) == ["top_left", "top_right", "bottom_left", "bottom_right"]
    for half, x in digits.modalities.items():
        sides = [quadrants.modalities[f"{half}_{side}"] for side in ("left", "right")]
        assert [side.shape for side in sides] == [(1797, 4, 4)] * 2
        np.testing.assert_array_equal(np.concatenate(sides, axis=2), x)
    np.testing.assert_array_equal(quadrants.labels, digits.labels)
    np.testing.assert_array_equal(quadrants.split, digits.split)
    halves = load_dataset(Data(source=DigitsSource(digits=Digits(cut="halves"))), seed=0)
    assert halves.digest() == digits.digest()


def test_digits_split_is_70_10_20_in_every_class(digits: Dataset) -> None:
    for label in range(digits.class_count):
        share = np.bincount(digits.split[digits.labels == label]) / np.count_nonzero(digits.labels == label)
        np.testing.assert_allclose(share, [0.7, 0.1, 0.2], atol=0.01)
    rows = np.concatenate([digits.indices(split) for split in (TRAIN, VALIDATION, TEST)])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1797))


def test_digits_split_alone_depends_on_the_seed(digits: Dataset) -> None:
    assert load_digits(seed=0).digest() == digits.digest()
    other = load_digits(seed=1)
    assert not np.array_equal(other.split, digits.split)
    assert replace(other, split=digits.split).digest() == digits.digest()


def test_digits_need_both_halves(digits: Dataset) -> None:
    flat = {name: x.reshape(len(x), -1) for name, x in digits.modalities.items()}
    flat["both"] = np.hstack([flat["top"], flat["bottom"]])
    train, test = digits.indices(TRAIN), digits.indices(TEST)
    accuracy = {
        name: LogisticRegression(max_iter=500).fit(x[train], digits.labels[train]).score(x[test], digits.labels[test])
        for name, x in flat.items()
    }
    assert accuracy["both"] > 0.94
    assert 0.8 < accuracy["top"] < accuracy["both"] - 0.05
    assert 0.8 < accuracy["bottom"] < accuracy["both"] - 0.05


@pytest.fixture
def small() -> Dataset:
    return Dataset(
        name="small",
        modalities={"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones((3, 1), dtype=np.float32)},
        labels=np.array([0, 1, 0]),
        split=np.array([0, 1, 2], dtype=np.uint8),
        class_names=("x", "y"),
        groups=np.array([5, 5, 6]),
    )


def test_digest_sees_every_part_of_the_data(small: Dataset) -> None:
    a, b = small.modalities["a"], small.modalities["b"]
    variants = [
        replace(small, modalities={"a": a + 1, "b": b}),
        replace(small, modalities={"a": a.reshape(3, 2, 1), "b": b}),
        replace(small, modalities={"c": a, "b": b}),
        replace(small, modalities={"a": a}),
        replace(small, labels=small.labels[::-1] * 0),
        replace(small, split=small.split[::-1]),
        replace(small, class_names=("y", "x")),
        replace(small, groups=None),
    ]
    digests = {small.digest(), *(variant.digest() for variant in variants)}
    assert len(digests) == len(variants) + 1


def test_digest_ignores_the_order_of_modalities_and_memory_layout(small: Dataset) -> None:
    shuffled = {"b": small.modalities["b"], "a": np.asfortranarray(small.modalities["a"])}
    assert replace(small, modalities=shuffled).digest() == small.digest()


def test_a_job_names_its_data(digits: Dataset) -> None:
    source = PidSource(samples=101)
    assert load_dataset(Data(source="digits"), seed=0).digest() == digits.digest()
    assert load_dataset(Data(source=PidSourceKey(pid=source)), seed=3).digest() == generate_pid(source, 3).digest()


@pytest.mark.skipif(not SHARED_FILES, reason="the shared data sets are not on this machine")
@pytest.mark.parametrize("path", SHARED_FILES, ids=lambda path: path.stem)
def test_real_files_load_whole_and_sample_by_sample(path: Path) -> None:
    dataset = load_dataset(Data(source=Hdf5Source(hdf5=str(path))), seed=0)
    assert set(np.unique(dataset.labels)) == set(range(dataset.class_count))
    assert all(len(x) == len(dataset.labels) and np.isfinite(x).all() for x in dataset.modalities.values())
    assert all(dataset.attributes[key] for key in ("source", "licence", "citation"))
    lazy = load_dataset(Data(source=Hdf5Source(hdf5=str(path), reading="lazy")), seed=0)
    some = np.random.default_rng(0).permutation(len(dataset.labels))[:20]
    for m, x in dataset.modalities.items():
        np.testing.assert_array_equal(lazy.modalities[m][some], x[some])


@pytest.mark.parametrize(("name", "groups"), [("utd_mhad", 3), ("dsa", 5), ("digits_av", 6), ("digits_xor", 6)])
@pytest.mark.parametrize("agent_count", [3, 30])
def test_real_subjects_and_speakers_stay_together(name: str, groups: int, agent_count: int) -> None:
    path = SHARED_DATA / f"{name}.h5"
    if not path.exists():
        pytest.skip("the shared data sets are not on this machine")
    dataset = read_dataset(path, "lazy")
    train = dataset.indices(TRAIN)
    assert dataset.groups is not None
    parts = partition(dataset.labels[train], agent_count, Partition(kind="by-group"), 0, dataset.groups[train])
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(train)))
    held = [set(dataset.groups[train[part]].tolist()) for part in parts]
    assert len(set.union(*held)) == groups
    assert sum(map(len, held)) == max(groups, agent_count)
