"""Seals: the last line of an HDF5 file that no manifest vouches for, with the sha256 of every byte before it.

HDF5 has checksums in its headers, but none over texts of variable length: a flipped bit there changes an attribute in
silence, or keeps libhdf5 in an endless loop. A seal covers all of the file, and is checked before libhdf5 sees any of
it. libhdf5 ignores what comes after the end that a file's header names: any HDF5 tool reads a sealed file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from parse_mpi.errors import StorageError

_PREFIX = b"\nparse-mpi sha256 "
SEAL_BYTES = len(_PREFIX) + 64 + 1
_READ_BYTES = 1 << 22


def seal_of(pieces: Iterable[memoryview]) -> memoryview:
    """The seal of a file that consists of these pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return memoryview(_seal(digest.hexdigest()))


def check_seal(path: Path) -> bool:
    """Whether a file has a seal. Raises StorageError where it is not that of the file, and OSError."""
    left, digest = os.path.getsize(path) - SEAL_BYTES, hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (chunk := file.read(min(left, _READ_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        seal = file.read(SEAL_BYTES)
    if not seal.startswith(_PREFIX):
        return False
    if seal != _seal(digest.hexdigest()):
        raise StorageError(f"{path}: was damaged or edited: it does not have the sha256 that its last line names")
    return True


def _seal(sha256: str) -> bytes:
    return _PREFIX + sha256.encode() + b"\n"
