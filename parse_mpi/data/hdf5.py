"""Reads a multimodal HDF5 file of the layout in docs/file-formats.md, and distrusts it.

    /modalities/<name>   float [N, ...]   one data set per modality
    /labels              integer [N]      0..C-1
    /split               integer [N]      0 train, 1 validation, 2 test
    /groups              integer [N]      optional: subject, speaker
    attributes           name, class_names, source, licence, citation, all optional

Everything else in the file is ignored. A file can come from anybody: what of it is refused stands in hdf5_guard.py.
All problems of a file are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import SPLIT_NAMES, TRAIN, Dataset, SampleArray, size_bytes
from parse_mpi.data.hdf5_guard import (
    ATTRIBUTE_BYTES,
    FLOATS,
    INTEGERS,
    RefusedError,
    has_link,
    open_array,
    open_child,
    read_attribute,
)
from parse_mpi.data.hdf5_values import FileArray, layout_error, read_modality, read_values, rows_in_all
from parse_mpi.data.memory import available_bytes, memory_ceiling
from parse_mpi.errors import DataError


def read_dataset(path: Path, reading: str = "memory", readers: int = 1) -> Dataset:
    """The data set of a file. Raises DataError with all problems of the file.

    reading: `memory` takes all of it into memory. `lazy` leaves the modalities in the file, where their values are
    checked when they are read. `auto` is lazy where they would take more than half of the memory that is available,
    shared by `readers` processes.
    """
    with _opened(path) as (file, problems):
        tables = _read_tables(file, problems)
        arrays = tables.modalities
        modalities: dict[str, SampleArray] = {}
        if reading == "lazy" or (reading == "auto" and _exceeds_memory(arrays, readers)):
            modalities |= {name: FileArray(path, array.name, array.shape) for name, array in arrays.items()}
        else:
            modalities |= {name: read_modality(array, problems) for name, array in arrays.items()}
    return Dataset(
        name=tables.attributes.pop("name", path.stem),
        modalities=modalities,
        labels=tables.labels,
        split=tables.split,
        class_names=tables.class_names,
        groups=tables.groups,
        attributes=tables.attributes,
    )


def _exceeds_memory(arrays: Mapping[str, Any], readers: int) -> bool:
    return readers * sum(map(size_bytes, arrays.values())) > available_bytes() / 2


@dataclass(frozen=True)
class _Tables:
    """All of a file but the values of its modalities; may be wrong where a problem was noted."""

    modalities: Mapping[str, Any]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    groups: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    attributes: dict[str, str]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """The open file and a list for its problems, which are raised as one DataError on the way out."""
    problems: list[str] = []
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: can't be opened as an HDF5 file ({error})") from error
    with file:
        try:
            yield file, problems
        except (OSError, RuntimeError) as error:  # libhdf5's, from outside any one data set
            problems.append(f"/: damaged, or not written to its end ({error})")
    if problems:
        raise layout_error(path, problems)


def _read_tables(file: Any, problems: list[str]) -> _Tables:
    modalities = _find_modalities(file, problems)
    labels = _read_integers(file, "labels", problems)
    split = _read_integers(file, "split", problems)
    groups = _read_integers(file, "groups", problems) if has_link(file, "groups") else None
    named = {f"/modalities/{name}": array for name, array in modalities.items()}
    _check_lengths(named | {"/labels": labels, "/split": split, "/groups": groups}, problems)
    if split is not None and not (split == TRAIN).any():
        problems.append("/split: no sample is in the training split (0)")
    labels = np.empty(0, dtype=np.int64) if labels is None else labels
    split = np.empty(0, dtype=np.int64) if split is None else split

    attributes = _read_attributes(file, problems)
    class_names = _read_class_names(file, labels, problems)
    _check_range("/labels", labels, len(class_names), f"a class, 0 to {len(class_names) - 1}", problems)
    _check_range("/split", split, len(SPLIT_NAMES), "0 (train), 1 (validation) or 2 (test)", problems)
    return _Tables(
        modalities=modalities,
        labels=labels.astype(np.int64),
        split=split.astype(np.uint8),
        groups=None if groups is None else groups.astype(np.int64),
        class_names=class_names,
        attributes=attributes,
    )


def _find_modalities(file: Any, problems: list[str]) -> dict[str, Any]:
    """The usable data sets of /modalities, unread, in the order of their names, whatever order the file keeps."""
    group = _open(open_child, file, "modalities", h5py.Group, problems)
    if group is None:
        return {}
    if len(group) == 0:
        problems.append("/modalities: holds no data set")
    found = {}
    for name in sorted(group, key=str):
        if isinstance(name, bytes):  # how h5py hands over what isn't UTF-8
            problems.append(f"/modalities: holds the name {name!r}, which isn't UTF-8")
            continue
        array = _open(open_array, group, name, FLOATS, problems)
        if array is None:
            continue
        if len(array.shape) < 2 or 0 in array.shape[1:]:
            problems.append(f"{array.name}: has shape {array.shape}; samples x at least one feature is expected")
        elif (least := _least_bytes(array)) > (free := available_bytes()):
            problems.append(f"{array.name}: one sample takes {least:,} bytes to read, of which {free:,} are available")
        else:
            found[name] = array
    return found


def _least_bytes(array: Any) -> int:
    """The memory that reading one sample takes: all of a chunk is decoded for it."""
    return int(array.dtype.itemsize * max(math.prod(array.shape[1:]), math.prod(array.chunks or ())))


def _open(opener: Callable[[Any, str, Any], Any], parent: Any, name: str, kind: object, problems: list[str]) -> Any:
    """What open_child or open_array opens; None, with a problem noted, where it refuses."""
    try:
        return opener(parent, name, kind)
    except RefusedError as error:
        problems.append(str(error))
        return None


def _read_integers(file: Any, name: str, problems: list[str]) -> NDArray[np.integer] | None:
    """The values of /name, in the type of the file; None, with a problem noted, if they aren't a vector of integers."""
    array = _open(open_array, file, name, INTEGERS, problems)
    if array is None:
        return None
    if len(array.shape) != 1:
        problems.append(f"/{name}: has shape {array.shape}; one number per sample is expected")
        return None
    return read_values(array, problems)


def _check_lengths(arrays: Mapping[str, Any], problems: list[str]) -> None:
    lengths = {name: array.shape[0] for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(f"/: the numbers of samples differ: {listed}")


def _check_range(where: str, values: NDArray[np.integer], end: int, wanted: str, problems: list[str]) -> None:
    bad_rows = np.flatnonzero((values < 0) | (values >= end))
    if len(bad_rows):
        row = bad_rows[0]
        problems.append(f"{where}: row {row} is {values[row]}, which isn't {wanted} ({rows_in_all(bad_rows)})")


def _read_attributes(file: Any, problems: list[str]) -> dict[str, str]:
    """name, source, licence and citation, as far as the file has them."""
    found = {}
    for key in ("name", "source", "licence", "citation"):
        if key not in file.attrs:
            continue
        text = _strings(file, key)
        if text is None or len(text) != 1:
            problems.append(f"attribute {key}: not a text")
        else:
            found[key] = text[0]
    return found


def _read_class_names(file: Any, labels: NDArray[np.integer], problems: list[str]) -> tuple[str, ...]:
    """The attribute class_names, or "0", "1", ... up to the largest label, which then must be below N."""
    if "class_names" in file.attrs:
        names = _strings(file, "class_names")
        if names:
            if len(set(names)) < len(names):
                problems.append("attribute class_names: two classes have the same name")
            return names
        problems.append("attribute class_names: not a list of texts")
    largest = int(labels.max(initial=0))
    return tuple(str(label) for label in range(min(largest + 1, len(labels))))


def _strings(file: Any, key: str) -> tuple[str, ...] | None:
    """The texts of an attribute, whether one or many, of fixed or variable length; None if it holds something else."""
    try:
        with memory_ceiling(ATTRIBUTE_BYTES):
            values = np.atleast_1d(read_attribute(file, key)).ravel().tolist()
        texts = tuple(value.decode() if isinstance(value, bytes) else value for value in values)
    except (RefusedError, MemoryError, UnicodeDecodeError):
        return None
    return texts if all(isinstance(text, str) for text in texts) else None
