"""What an HDF5 file will look like, byte by byte, before any byte of it is on disk.

libhdf5 can swallow a full disk: a failed write surfaces in a destructor and the file closes cleanly with data missing
(h5py #914, #1120). So libhdf5 never touches the disk here. It lays the file out in a sparse file in memory, which
receives headers only (data sets are contiguous, allocated early and never filled), and the arrays stay where they are.
The result is a list of byte views, headers and arrays in file order, for write.py to write with checked system calls.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Attribute: TypeAlias = str | bool | int | float | list[str] | Array
Attributes: TypeAlias = Mapping[str, Mapping[str, Attribute]]

DIGEST_ATTRIBUTE = "sha256"

# The format of HDF5 1.8: old enough for every reader, with checksums in its headers and no 64 KiB limit on attributes.
_LIBRARY_VERSIONS = ("v108", "v108")
_VIRTUAL_VERSIONS = ("v110", "v110")  # the first that has virtual data sets
_PAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class VirtualArray:
    """A data set whose rows lie in data sets of the same name in other files.

    parts: file, relative to the directory of this one -> where its rows stand here, as closed ranges [first, last].
    Where a file is missing, rows read as NaN, or -1 in integers.
    """

    shape: tuple[int, ...]
    dtype: str
    parts: Mapping[str, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Layout:
    """A finished HDF5 file that is not written yet.

    pieces: the file's bytes in order; those of the arrays are views of the caller's memory, so the arrays must not
    change until the file is written. digests: data set name -> sha256 of its bytes.
    """

    pieces: list[memoryview]
    digests: dict[str, str]


@dataclass(frozen=True)
class Headers:
    """All bytes of an HDF5 file but those of its arrays.

    pieces: offset -> bytes, in file order. offsets: data set name -> its first byte, for data sets that have bytes.
    size_bytes: of the whole file.
    """

    pieces: dict[int, memoryview]
    offsets: dict[str, int]
    size_bytes: int


def lay_out(arrays: Mapping[str, Array], attributes: Attributes, virtual: Mapping[str, VirtualArray] = {}) -> Layout:
    """Lay out an HDF5 file with these data sets and attributes.

    arrays: full data set name -> numbers, booleans or strings of any shape, empty and scalar ones included. Unicode
    arrays become fixed-length UTF-8. attributes: name of a group or data set ("" is the root) -> its attributes; a
    group that holds no data set is made. Every data set gets an attribute `sha256` of its bytes, for readers to check.
    virtual: data sets with their bytes in other files, which take HDF5 1.10 to read. The same content gives the same
    bytes. Raises TypeError for a dtype that a reader would have to unpickle.
    """
    stored = {name.strip("/"): _storable(name, array) for name, array in arrays.items()}
    digests = {name: hashlib.sha256(bytes_of(array)).hexdigest() for name, array in stored.items()}
    headers = lay_out_headers(stored, digests, attributes, virtual)
    content = headers.pieces | {offset: bytes_of(stored[name]) for name, offset in headers.offsets.items()}
    return Layout([content[offset] for offset in sorted(content)], digests)


def lay_out_headers(
    arrays: Mapping[str, Array],
    digests: Mapping[str, str],
    attributes: Attributes,
    virtual: Mapping[str, VirtualArray] = {},
) -> Headers:
    """The file of `lay_out` without its arrays, of which shape and dtype alone are looked at.

    digests: sha256 of every data set by name. Other digests in their place move nothing.
    """
    sparse = _SparseFile()
    with h5py.File(sparse, "w", libver=_VIRTUAL_VERSIONS if virtual else _LIBRARY_VERSIONS) as file:
        allocated = {name: _create(file, name, array) for name, array in arrays.items()}
        for name, array in virtual.items():
            _create_virtual(file, name, array)
        for name, digest in digests.items():
            file[name].attrs[DIGEST_ATTRIBUTE] = digest
        for name, values in attributes.items():
            target = file[name] if name.strip("/") in arrays else file.require_group(name or "/")
            for key, value in values.items():
                target.attrs[key] = _attribute(value)
    offsets = {name: offset for name, offset in allocated.items() if offset is not None}
    pieces: dict[int, memoryview] = {}
    position = 0
    for offset, name in sorted((offset, name) for name, offset in offsets.items()):
        if offset > position:
            pieces[position] = sparse.between(position, offset)
        position = offset + arrays[name].nbytes
    pieces[position] = sparse.between(position, sparse.size_bytes)
    return Headers(pieces, offsets, sparse.size_bytes)


def _storable(name: str, array: Array) -> Array:
    """The array as it is stored: in C order, strings as UTF-8 bytes of one length."""
    array = np.asarray(array, order="C")
    if array.dtype.kind == "U":
        encoded = np.char.encode(array, "utf-8").reshape(array.shape)  # NumPy 1 flattens empty arrays
        return encoded.astype(h5py.string_dtype("utf-8", max(encoded.dtype.itemsize, 1)))
    if array.dtype.kind not in "biufcS":
        raise TypeError(f"{name}: dtype {array.dtype} can't be stored; use numbers, booleans or strings")
    return array


def _attribute(value: Attribute) -> Any:
    """Strings and lists of strings as variable-length UTF-8, which h5py reads back as str."""
    is_text = isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.kind == "U")
    return np.array(value, dtype=h5py.string_dtype()) if is_text else value


def bytes_of(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _create(file: h5py.File, name: str, array: Array) -> int | None:
    """Allocate a contiguous data set; returns the offset of its first byte, None where it has no bytes."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    data_type = h5py.h5t.py_create(array.dtype, logical=True)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    data_set = h5py.h5d.create(file.id, name.encode(), data_type, space, creation, _with_groups())
    offset: int | None = data_set.get_offset() if array.nbytes else None
    if offset is None and array.nbytes:
        raise RuntimeError(f"{name}: libhdf5 allocated no space for {array.nbytes} bytes")
    return offset


def _create_virtual(file: h5py.File, name: str, array: VirtualArray) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.VIRTUAL)
    creation.set_obj_track_times(False)
    dtype = np.dtype(array.dtype)
    if dtype.kind in "fci":
        creation.set_fill_value(np.array([-1 if dtype.kind == "i" else np.nan], dtype))
    of_each_row = array.shape[1:]
    for file_name, ranges in array.parts.items():
        there_shape = (sum(last - first + 1 for first, last in ranges), *of_each_row)
        if not all(there_shape):
            continue  # libhdf5 can't read everything that has a mapping of nothing
        here = h5py.h5s.create_simple(array.shape)
        here.select_none()
        for first, last in ranges:
            start, block = (first, *(0 for _ in of_each_row)), (last - first + 1, *of_each_row)
            here.select_hyperslab(start, (1,) * len(start), block=block, op=h5py.h5s.SELECT_OR)
        there = h5py.h5s.create_simple(there_shape)
        # libhdf5 takes % in a name for a pattern.
        creation.set_virtual(here, file_name.encode(), name.replace("%", "%%").encode(), there)
    space, data_type = h5py.h5s.create_simple(array.shape), h5py.h5t.py_create(dtype, logical=True)
    h5py.h5d.create(file.id, name.encode(), data_type, space, creation, _with_groups())


def _with_groups() -> h5py.h5p.PropLCID:
    """Have the groups of a data set's name made with it."""
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return links


class _SparseFile(io.RawIOBase):
    """A file in memory that keeps only the pages that were written; the rest reads as zeros."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(_PAGE_BYTES))
        self._position = 0
        self.size_bytes = 0

    def between(self, start: int, stop: int) -> memoryview:
        """A copy of the bytes start..stop-1."""
        content = bytearray(stop - start)
        for page, inside, outside in self._spans(start, stop):
            if page in self._pages:
                content[outside] = self._pages[page][inside]
        return memoryview(content)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size_bytes = self._position if size is None else size
        return self.size_bytes

    def write(self, data: Any) -> int:
        content = bytes(data)
        stop = self._position + len(content)
        for page, inside, outside in self._spans(self._position, stop):
            self._pages[page][inside] = content[outside]
        self._position = stop
        self.size_bytes = max(self.size_bytes, stop)
        return len(content)

    def readinto(self, buffer: Any) -> int:
        content = self.between(self._position, min(self._position + len(buffer), self.size_bytes))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    @staticmethod
    def _spans(start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Cut start..stop-1 at page borders: page number, slice of the page, slice of the whole."""
        position = start
        while position < stop:
            page, first = divmod(position, _PAGE_BYTES)
            count = min(_PAGE_BYTES - first, stop - position)
            yield page, slice(first, first + count), slice(position - start, position - start + count)
            position += count
