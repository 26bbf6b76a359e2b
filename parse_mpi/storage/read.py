"""Reading back what write.py wrote, or what pretends to be that: seal, structure and sizes first, digests after."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parse_mpi.data.hdf5_guard import ATTRIBUTE_BYTES, UNREADABLE, RefusedError, read_attribute, size_bytes, walk
from parse_mpi.data.memory import memory_ceiling
from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import DIGEST_ATTRIBUTE, Array, Attribute
from parse_mpi.storage.seal import check_seal


@dataclass(frozen=True)
class Content:
    """A whole file: data set name -> array, and group or data set name ("" is the root) -> attributes."""

    arrays: dict[str, Array]
    attributes: dict[str, dict[str, Attribute]]
    is_sealed: bool


def read_hdf5(path: Path) -> Content:
    """Read a file of write_hdf5 into memory; UTF-8 data sets come back as str arrays.

    Raises StorageError where the file can't be opened, is not of that kind, or a data set is not the one that was
    written.
    """
    try:
        require_plain_file(path)
        is_sealed = check_seal(path)
        with h5py.File(path, "r") as file:
            items = {item.name.strip("/"): item for item in (file, *walk(file))}
            data_sets = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
            _refuse_more_than_the_file(path, data_sets)
            with memory_ceiling(ATTRIBUTE_BYTES):
                attributes = {name: _attributes(item) for name, item in items.items()}
            digests = {name: attributes[name].pop(DIGEST_ATTRIBUTE, None) for name in data_sets}
            arrays = {name: _read(path, name, item, digests[name]) for name, item in data_sets.items()}
    except RefusedError as error:
        raise StorageError(f"{path}: {error}") from error
    except (*UNREADABLE, RecursionError) as error:
        raise StorageError(f"{path}: can't be read as HDF5: {error}") from error
    return Content(arrays, {name: values for name, values in attributes.items() if values}, is_sealed)


def read_small_file(path: Path, most_bytes: int) -> bytes:
    """All of a file. Raises StorageError where it is larger or no plain file, and OSError."""
    require_plain_file(path)
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise StorageError(f"{path}: larger than {most_bytes:,} bytes, which no such file is")
    return content


def require_plain_file(path: Path) -> None:
    """Raises StorageError where a name leads to another file, or to what is no file; OSError where there is nothing."""
    mode = os.lstat(path).st_mode
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise StorageError(f"{path}: is {what}; put the file itself there")


def _refuse_more_than_the_file(path: Path, data_sets: Mapping[str, h5py.Dataset]) -> None:
    """Data sets that share their bytes could each pass for stored, and fill the memory together."""
    declared, held = sum(map(size_bytes, data_sets.values())), os.path.getsize(path)
    if declared > held:
        raise StorageError(f"{path}: declares {declared:,} bytes of data and has {held:,}")


def _attributes(item: Any) -> dict[str, Attribute]:
    return {key: _plain(read_attribute(item, key)) for key in item.attrs}


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
