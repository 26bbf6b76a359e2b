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
from collections.abc import Iterator, Mapping
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
_PAGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Layout:
    """A finished HDF5 file that is not written yet.

    pieces: the file's bytes in order; those of the arrays are views of the caller's memory, so the arrays must not
    change until the file is written. digests: data set name -> sha256 of its bytes.
    """

    pieces: list[memoryview]
    digests: dict[str, str]


def lay_out(arrays: Mapping[str, Array], attributes: Attributes) -> Layout:
    """Lay out an HDF5 file with these data sets and attributes.

    arrays: full data set name -> numbers, booleans or strings of any shape, empty and scalar ones included. Unicode
    arrays become fixed-length UTF-8. attributes: name of a group or data set ("" is the root) -> its attributes; a
    group that holds no data set is made. Every data set gets an attribute `sha256` of its bytes, for readers to check.
    The same content gives the same bytes. Raises TypeError for a dtype that a reader would have to unpickle.
    """
    stored = {name.strip("/"): _storable(name, array) for name, array in arrays.items()}
    digests = {name: hashlib.sha256(_bytes_of(array)).hexdigest() for name, array in stored.items()}
    sparse = _SparseFile()
    with h5py.File(sparse, "w", libver=_LIBRARY_VERSIONS) as file:
        offsets = {name: _create(file, name, array) for name, array in stored.items()}
        for name, digest in digests.items():
            file[name].attrs[DIGEST_ATTRIBUTE] = digest
        for name, values in attributes.items():
            target = file[name] if name.strip("/") in stored else file.require_group(name or "/")
            for key, value in values.items():
                target.attrs[key] = _attribute(value)
    extents = [(offset, _bytes_of(stored[name])) for name, offset in offsets.items() if offset is not None]
    return Layout(list(_in_file_order(sparse, extents)), digests)


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


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _create(file: h5py.File, name: str, array: Array) -> int | None:
    """Allocate a contiguous data set; returns the offset of its first byte, None where it has no bytes."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    data_type = h5py.h5t.py_create(array.dtype, logical=True)
    space = h5py.h5s.create_simple(array.shape) if array.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    data_set = h5py.h5d.create(file.id, name.encode(), data_type, space, creation, links)
    offset: int | None = data_set.get_offset()
    if offset is None and array.nbytes:
        raise RuntimeError(f"{name}: libhdf5 allocated no space for {array.nbytes} bytes")
    return offset


def _in_file_order(sparse: _SparseFile, extents: list[tuple[int, memoryview]]) -> Iterator[memoryview]:
    position = 0
    for offset, values in sorted(extents, key=lambda extent: extent[0]):
        yield sparse.between(position, offset)
        yield values
        position = offset + len(values)
    yield sparse.between(position, sparse.size_bytes)


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
