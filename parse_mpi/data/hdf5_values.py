"""The values of one data set of a data file: all of them at once, or some when they are asked for.

Shape suffixes: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.hdf5_guard import UNREADABLE, size_bytes
from parse_mpi.data.memory import available_bytes
from parse_mpi.errors import DataError

ROWS_AT_A_TIME = 256  # libhdf5 merges the selection of one read row by row, which gets slow with many


class FileArray:
    """The samples of one modality, left in the file: indexing reads float32 [n, ...].

    Opens the file when it is first read, so that a process that was forked before has a handle of its own.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]):
        self.shape = shape
        self._path = path
        self._name = name

    def __getitem__(self, index_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples `index_N`, in any order and also repeated; each is read once.

        Raises DataError where they can't be read or aren't finite.
        """
        rows, place_N = np.unique(index_N, return_inverse=True)
        try:
            values = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
            for start in range(0, len(rows), ROWS_AT_A_TIME):
                part = rows[start : start + ROWS_AT_A_TIME]
                adjacent = part[-1] - part[0] == len(part) - 1
                with np.errstate(over="ignore"):
                    values[start : start + len(part)] = self._array[slice(part[0], part[-1] + 1) if adjacent else part]
        except UNREADABLE as error:
            raise layout_error(self._path, [_unreadable(self._name, error)]) from error
        if len(bad := _non_finite(values)):
            raise layout_error(self._path, [f"{self._name}: row {rows[bad[0]]} isn't finite in float32"])
        return values if len(rows) == len(index_N) and (rows == index_N).all() else values[place_N]

    @cached_property
    def _array(self) -> Any:
        return h5py.File(self._path, "r")[self._name]


def read_modality(array: Any, problems: list[str]) -> NDArray[np.float32]:
    """All values as float32 [N, ...]; notes the first sample with NaN or infinity, or with a value beyond float32."""
    values = read_values(array, problems)
    if values is None:
        return np.empty(0, dtype=np.float32)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float32)
    if len(bad := _non_finite(values)):
        problems.append(f"{array.name}: row {bad[0]} isn't finite in float32 ({rows_in_all(bad)})")
    return values


def read_values(array: Any, problems: list[str]) -> NDArray[Any] | None:
    """All values in the type of the file; None, with a problem noted, where they can't be read."""
    if (needed := size_bytes(array)) > (free := available_bytes()):
        problems.append(f"{array.name}: takes {needed:,} bytes of memory, of which {free:,} are available")
        return None
    try:
        values: NDArray[Any] = array[()]
    except UNREADABLE as error:
        problems.append(_unreadable(array.name, error))
        return None
    return values


def rows_in_all(rows: NDArray[np.int64]) -> str:
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''} in all"


def layout_error(path: Path, problems: Sequence[str]) -> DataError:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return DataError(f"{path}: not a data file of the layout in docs/file-formats.md:{lines}")


def _non_finite(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which samples hold NaN or infinity, ascending."""
    return np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def _unreadable(name: str, error: Exception) -> str:
    return f"{name}: can't be read ({error})"
