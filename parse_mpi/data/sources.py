"""From the data section of a job to the data set itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from parse_mpi.data.dataset import Dataset
from parse_mpi.data.digits import load_digits
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.pid import generate_pid
from parse_mpi.data.split import fresh_split, keeps_groups_apart
from parse_mpi.errors import DataError
from parse_mpi.job import Data, DigitsSource, Hdf5Source, PidSourceKey


def load_dataset(data: Data, seed: int, readers: int = 1) -> Dataset:
    """The data set, the same on every rank; DataError where an HDF5 file breaks its layout, or can't be split anew.

    `seed` draws the split of digits, everything of pid, and the split of an HDF5 file whose own one is not wanted.
    readers: how many processes of this host load it and share the memory.
    """
    match data.source:
        case Hdf5Source(hdf5=path, reading=reading, split=split):
            dataset = read_dataset(Path(path), reading, readers)
            return dataset if split == "file" else _split_anew(dataset, path, seed)
        case PidSourceKey(pid=source):
            return generate_pid(source, seed)
        case DigitsSource(digits=digits):
            return load_digits(seed, digits.cut)
        case "digits":
            return load_digits(seed)


def _split_anew(dataset: Dataset, path: str, seed: int) -> Dataset:
    """Raises DataError where that would test on groups that were trained on, and the file's own split does not."""
    if dataset.groups is not None and keeps_groups_apart(dataset.groups, dataset.split):
        raise DataError(
            f"{path}: data.source.split: fresh would deal samples of one group (subject, speaker) to training and to "
            "test, which /split of this file keeps apart; leave it at split: file"
        )
    return replace(dataset, split=fresh_split(dataset.labels, dataset.split, seed))
