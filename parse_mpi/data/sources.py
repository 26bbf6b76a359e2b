"""From the data section of a job to the data set itself."""

from __future__ import annotations

from pathlib import Path

from parse_mpi.data.dataset import Dataset
from parse_mpi.data.digits import load_digits
from parse_mpi.data.hdf5 import read_dataset
from parse_mpi.data.pid import generate_pid
from parse_mpi.job import Data, DigitsSource, Hdf5Source, PidSourceKey


def load_dataset(data: Data, seed: int, readers: int = 1) -> Dataset:
    """The data set, the same on every rank; DataError where an HDF5 file breaks its layout.

    `seed` draws the split of digits and everything of pid; an HDF5 file carries its own split. readers: how many
    processes of this host load it and share the memory.
    """
    match data.source:
        case Hdf5Source(hdf5=path, reading=reading):
            return read_dataset(Path(path), reading, readers)
        case PidSourceKey(pid=source):
            return generate_pid(source, seed)
        case DigitsSource(digits=digits):
            return load_digits(seed, digits.cut)
        case "digits":
            return load_digits(seed)
