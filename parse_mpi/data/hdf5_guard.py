"""What is looked at in an HDF5 file before any value of it is read, for a file can come from anybody.

libhdf5 does whatever a file says: it opens other files that links, external storage and virtual data sets name, and it
allocates whatever size is declared. Here nothing leads out of a file, nothing but numbers, booleans and text is read,
and what is not stored in the file is not there. What can't be caught is a file forged so that libhdf5 itself crashes or
never ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import h5py

FLOATS, INTEGERS, PLAIN = "f", "iu", "biufcS"  # NumPy's kinds
ATTRIBUTE_BYTES = 1 << 28  # of memory, for all attributes of a file
# What h5py raises for damaged files, for types that NumPy lacks and for arrays larger than the memory.
UNREADABLE = (KeyError, OSError, RuntimeError, TypeError, ValueError, MemoryError)

_EXPECTED = {FLOATS: "a floating-point", INTEGERS: "an integer", PLAIN: "a numeric, boolean or fixed-length text"}


class RefusedError(Exception):
    """Something that is not read; the message begins with where it stands in the file."""


def open_child(parent: Any, name: str, kind: type) -> Any:
    """The group or data set (`kind`) that `parent` lists as `name`. Raises RefusedError where this file has none."""
    where = f"{parent.name.rstrip('/')}/{name}"
    wanted = "group" if kind is h5py.Group else "data set"
    try:
        if name in ("", ".") or "/" in name:  # a path, and libhdf5 would follow every link on it
            problem = "a name with a slash, or none at all"
        elif not has_link(parent, name):
            problem = f"missing; a {wanted} is expected"
        elif parent.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            problem = f"is a link; copy the {wanted} itself into the file"
        elif not isinstance(child := parent[name], kind):
            problem = f"not a {wanted}"
        else:
            return child
    except UNREADABLE as error:
        problem = f"can't be opened ({error})"
    raise RefusedError(f"{where}: {problem}")


def has_link(parent: Any, name: str) -> bool:
    """Whether `parent` lists `name`, without following where it leads."""
    return bool(parent.id.links.exists(name.encode()))


def open_array(parent: Any, name: str, kinds: str) -> Any:
    """The data set `name` of `parent`, of a type of `kinds`. Raises RefusedError where this file lacks its values."""
    array = open_child(parent, name, h5py.Dataset)
    try:
        if array.is_virtual or array.external is not None:
            problem = "its values lie in other files; copy them into this one"
        elif array.dtype.kind not in kinds:
            problem = f"has type {array.dtype}; {_EXPECTED[kinds]} type is expected"
        elif array.shape is None:
            problem = "no values were ever written"
        else:
            problem = _missing_values(array)
    except UNREADABLE as error:
        problem = f"can't be opened ({error})"
    if problem:
        raise RefusedError(f"{array.name}: {problem}")
    return array


def open_contiguous(group: Any, path: str) -> Any:
    """The data set `path` below `group`, its bytes in one piece as parse_mpi writes them. Raises RefusedError."""
    *groups, name = path.split("/")
    for step in groups:
        group = open_child(group, step, h5py.Group)
    array = open_array(group, name, PLAIN)
    if array.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise RefusedError(f"{array.name}: its bytes don't lie in one piece, which is how parse_mpi writes a data set")
    return array


def walk(group: Any) -> Iterator[Any]:
    """All groups and contiguous data sets below `group`, by name. Raises RefusedError for anything else."""
    yield from _walk(group, {_address(group)})


def read_attribute(item: Any, key: str) -> Any:
    """An attribute as h5py reads it. Raises RefusedError where it is neither numbers nor text.

    What a text of variable length takes is not known before it is read, and many can share the same bytes of a file:
    read attributes under memory_ceiling(ATTRIBUTE_BYTES).
    """
    where = f"{item.name}: attribute {key}"
    try:
        attribute = item.attrs.get_id(key)
        is_text = h5py.check_string_dtype(attribute.dtype) is not None
        if attribute.shape is not None and (is_text or attribute.dtype.kind in PLAIN):
            return item.attrs[key]
    except UNREADABLE as error:
        raise RefusedError(f"{where} can't be read ({error})") from error
    raise RefusedError(f"{where} is neither a number nor text")


def size_bytes(array: Any) -> int:
    """What the values of a data set take in memory, as it declares them. h5py's own count overflows."""
    return int(math.prod(array.shape) * array.dtype.itemsize)


def _missing_values(array: Any) -> str:
    """What the file lacks of the values that a data set claims to have; "" where they are all there.

    Values that were never written read as a fill value, so that a small file can claim to hold any number of them.
    """
    if size_bytes(array) == 0:
        return ""
    if not array.id.get_storage_size():
        return "no values were ever written"
    if array.chunks is not None:
        chunks = math.prod(-(-length // chunk) for length, chunk in zip(array.shape, array.chunks, strict=True))
        written = array.id.get_num_chunks()
        return "" if written == chunks else f"only {written} of its {chunks} chunks were ever written"
    offset = array.id.get_offset()  # None where they lie in the header
    end = (offset or 0) + math.prod(array.shape) * array.id.get_type().get_size()
    return "its values lie beyond the end of the file" if end > array.file.id.get_filesize() else ""


def _walk(group: Any, seen: set[int]) -> Iterator[Any]:
    for name in sorted(group, key=str):
        if isinstance(name, bytes):
            raise RefusedError(f"{group.name}: holds the name {name!r}, which isn't UTF-8")
        child = _open_any(group, name)
        if _address(child) in seen:  # among them every cycle
            raise RefusedError(f"{child.name}: has a second name")
        seen.add(_address(child))
        yield child
        if isinstance(child, h5py.Group):
            yield from _walk(child, seen)


def _open_any(group: Any, name: str) -> Any:
    child = open_child(group, name, h5py.HLObject)
    return child if isinstance(child, h5py.Group) else open_contiguous(group, name)


def _address(item: Any) -> int:
    return int(h5py.h5o.get_info(item.id).addr)
