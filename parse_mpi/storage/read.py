"""Reading back the HDF5 files that write.py wrote, with every data set checked against its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import DIGEST_ATTRIBUTE, Array, Attribute


@dataclass(frozen=True)
class Content:
    """A whole file: data set name -> array, and group or data set name ("" is the root) -> attributes."""

    arrays: dict[str, Array]
    attributes: dict[str, dict[str, Attribute]]


def read_hdf5(path: Path) -> Content:
    """Read a file of write_hdf5 into memory; UTF-8 data sets come back as str arrays.

    Raises StorageError where the file can't be opened or a data set is not the one that was written.
    """
    arrays: dict[str, Array] = {}
    attributes: dict[str, dict[str, Attribute]] = {}

    def visit(name: str, item: Any) -> None:
        values = {key: _plain(value) for key, value in item.attrs.items()}
        digest = values.pop(DIGEST_ATTRIBUTE, None)
        if isinstance(item, h5py.Dataset):
            arrays[name] = _read(path, name, item, digest)
        if values:
            attributes[name] = values

    try:
        with h5py.File(path, "r") as file:
            visit("", file)
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: can't be read as HDF5: {error}") from error
    return Content(arrays, attributes)


def _read(path: Path, name: str, data_set: h5py.Dataset, digest: Attribute | None) -> Array:
    values = np.asarray(data_set[()], dtype=data_set.dtype, order="C")
    if hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest() != digest:
        raise StorageError(f"{path}: /{name} was damaged: its bytes do not have the sha256 that they were written with")
    text = h5py.check_string_dtype(data_set.dtype)
    if text is None or text.encoding != "utf-8":
        return values
    return np.char.decode(values, "utf-8").reshape(values.shape)  # NumPy 1 flattens empty arrays


def _plain(value: Any) -> Attribute:
    """An attribute as it was given to write_hdf5: str, bool, int, float, list of str, or an array of numbers."""
    if isinstance(value, np.ndarray):
        return [str(item) for item in value.tolist()] if value.dtype.kind == "O" else value
    return value.item() if isinstance(value, np.generic) else str(value)
