"""Fresh splits of a data file: as large as its own, stratified, and never across subjects that it keeps apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_jobs import write_dataset, write_job

from parse_mpi.cli import main
from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.hdf5_values import FileArray
from parse_mpi.data.sources import load_dataset
from parse_mpi.data.split import fresh_split, keeps_groups_apart
from parse_mpi.errors import DataError
from parse_mpi.job import Data, Hdf5Source
from parse_mpi.jobfile import changed_keys, load_job


@st.composite
def labels_and_splits(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Labels of any imbalance, and a split with at least one training sample whose other parts may be empty."""
    labels = draw(st.lists(st.integers(0, 5), min_size=1, max_size=80))
    parts = draw(st.sampled_from([[TRAIN], [TRAIN, TEST], [TRAIN, TRAIN, TRAIN, VALIDATION, TEST]]))
    split = draw(st.lists(st.sampled_from(parts), min_size=len(labels), max_size=len(labels)))
    return np.array(labels, np.int64), np.array([TRAIN, *split[1:]], np.uint8)


@given(drawn=labels_and_splits(), seed=st.integers(0, 2**40))
def test_every_class_is_in_every_part_in_its_proportions(
    drawn: tuple[NDArray[np.int64], NDArray[np.uint8]], seed: int
) -> None:
    labels, split = drawn
    fresh = fresh_split(labels, split, seed)
    assert fresh.dtype == np.uint8
    sizes, made = np.bincount(split, minlength=3), np.bincount(fresh, minlength=3)
    assert set(np.flatnonzero(made)) <= set(np.flatnonzero(sizes))
    needed_first = [part for part in (TRAIN, TEST, VALIDATION) if sizes[part]]
    moved = 0
    for label in np.unique(labels):
        count = np.count_nonzero(labels == label)
        found = np.bincount(fresh[labels == label], minlength=3)
        assert (found[needed_first[:count]] >= 1).all()
        proportion = sizes / len(labels)
        # Up to any place of the line a part has come as often as it should, within half of its own and half of each.
        close = 1 + 3 * proportion
        scarce = np.count_nonzero((count * proportion <= close) & (sizes > 0))
        assert (abs(found - count * proportion) <= close + scarce).all()
        moved += scarce
    assert (abs(made - sizes) <= moved).all()


def test_large_classes_are_split_to_the_sample() -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 250, 200, 50])
    split = np.repeat([TRAIN, VALIDATION, TEST], [700, 100, 200]).astype(np.uint8)
    fresh = fresh_split(labels, split, seed=4)
    assert np.bincount(fresh).tolist() == [700, 100, 200]
    for label, expected in enumerate(([350, 50, 100], [175, 25, 50], [140, 20, 40], [35, 5, 10])):
        assert abs(np.bincount(fresh[labels == label]) - expected).max() <= 1


def test_another_seed_is_another_split_and_every_sample_may_be_tested() -> None:
    labels = np.arange(300) % 3
    split = (np.arange(300) % 10 // 8 * TEST).astype(np.uint8)
    drawn = np.array([fresh_split(labels, split, seed) for seed in range(60)])
    np.testing.assert_array_equal(drawn[7], fresh_split(labels, split, 7))
    assert len({row.tobytes() for row in drawn}) == 60
    share = (drawn == TEST).mean(0)
    assert share.mean() == pytest.approx(0.2)
    assert 0 < share.min() < share.max() < 0.5


@pytest.mark.parametrize(
    ("groups", "split", "apart"),
    [
        ([1, 1, 2, 3], [TRAIN, TRAIN, TEST, VALIDATION], True),
        ([1, 1, 2, 2], [TRAIN, TRAIN, TEST, VALIDATION], True),
        ([1, 2, 2, 3], [TRAIN, TRAIN, TEST, VALIDATION], False),
        ([1, 1, 2, 2], [TRAIN, TRAIN, VALIDATION, VALIDATION], True),  # no test samples: those of validation tell
        ([1, 2, 2, 2], [TRAIN, TRAIN, VALIDATION, VALIDATION], False),
        ([1, 1, 2, 2], [TRAIN] * 4, False),
    ],
)
def test_a_split_is_by_group_where_no_group_is_trained_and_tested_on(
    groups: list[int], split: list[int], apart: bool
) -> None:
    assert keeps_groups_apart(np.array(groups), np.array(split, np.uint8)) is apart


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Its groups are its classes, so that every one of them is in every part."""
    return write_dataset(tmp_path / "set.h5")


def source(path: Path, split: str, reading: str = "memory") -> Data:
    return Data(source=Hdf5Source(hdf5=str(path), split=split, reading=reading))


def test_only_the_split_of_a_file_changes_and_only_where_it_is_asked_for(path: Path) -> None:
    whole = read_dataset(path)
    np.testing.assert_array_equal(load_dataset(source(path, "file"), seed=1).split, whole.split)
    fresh = load_dataset(source(path, "fresh"), seed=1)
    np.testing.assert_array_equal(fresh.split, fresh_split(whole.labels, whole.split, 1))
    assert replace(fresh, split=whole.split).digest() == whole.digest()
    assert len({fresh.digest(), whole.digest(), load_dataset(source(path, "fresh"), seed=2).digest()}) == 3
    lazy = load_dataset(source(path, "fresh", "lazy"), seed=1)
    assert isinstance(lazy.modalities["a"], FileArray)
    assert lazy.digest() == fresh.digest()


def test_subjects_that_the_file_keeps_apart_are_not_mixed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(path, "r+") as file:
        file["groups"][...] = file["split"][...]
    with pytest.raises(DataError, match=r"set\.h5: data\.source\.split: fresh .* keeps apart; leave it at split: file"):
        load_dataset(source(path, "fresh"), seed=0)
    agents = [{"modalities": ["a"], "count": 3}]
    job = write_job(path.parent, {"data": {"source": {"hdf5": "set.h5", "split": "fresh"}}, "agents": agents})
    assert main(["check", str(job)]) == DataError.exit_code
    assert "data.source.split: fresh" in capsys.readouterr().err
    assert main(["check", str(job), "--set", "data.source.split=file"]) == 0


def test_a_run_does_not_resume_with_another_split_and_bad_values_are_explained(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agents = [{"modalities": ["a"], "count": 3}]
    job = write_job(path.parent, {"data": {"source": {"hdf5": "set.h5"}}, "agents": agents})
    fresh = load_job(job, ["data.source.split=fresh"]).job
    assert changed_keys(load_job(job).job, fresh) == ["data.source.split: 'file' -> 'fresh'"]
    assert main(["check", str(job), "--set", "data.source.split=frehs"]) == 2
    said = capsys.readouterr().err
    assert "--set data.source.split: `data.source.split`" in said
    assert "file or fresh" in said
