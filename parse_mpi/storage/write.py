"""The one way a file comes into being here: whole or not at all, whatever is killed or full on the way.

A file is written under a temporary name in its own directory with checked system calls, flushed to the device, read
back and compared, and only then renamed over the name that readers know. A reader sees the old file or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array, Attributes, VirtualArray, lay_out
from parse_mpi.storage.seal import seal_of

_READ_BYTES = 1 << 22

_NEXT_STEPS = {
    errno.ENOSPC: "Free space on that file system; if the run has ended, start the same command again.",
    errno.EDQUOT: "Your quota there is used up: free space; if the run has ended, start the same command again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), and start the same command again.",
    errno.EACCES: "Mend its permissions, or choose another directory.",
    errno.EPERM: "Mend its permissions, or choose another directory.",
    errno.EROFS: "Mount it for writing, or choose another directory.",
    errno.ENOENT: "If the run directory was moved away, move it back.",
    errno.ENOTDIR: "A file stands where a directory belongs: move it aside.",
    errno.EEXIST: "A file stands where a directory belongs: move it aside.",
}


@dataclass(frozen=True)
class FileRecord:
    """What is on disk now: size and sha256 of the file, and sha256 of each data set's bytes by name."""

    size_bytes: int
    sha256: str
    arrays: dict[str, str]


def write_hdf5(
    path: Path, arrays: Mapping[str, Array], attributes: Attributes, virtual: Mapping[str, VirtualArray] = {}
) -> FileRecord:
    """Write an HDF5 file of contiguous, unfiltered data sets, replacing `path` in one step.

    arrays: data set name -> numbers, booleans or strings; attributes: group or data set name ("" is the root) ->
    attributes; virtual: data sets with their bytes in other files (all see layout.lay_out). The arrays must not change
    during the call. No copy of them is made.

    The returned sha256 is that of the file as memory says it must be, and the file is read back and hashed to the same
    value before it gets its name. Beyond the write and the flush that costs three passes of sha256 (data sets, file,
    read back: about 0.5 s per GB each) and one read, mostly from the page cache. It is what makes the difference
    between a digest that proves what was meant and one that certifies a damaged file.

    Raises StorageError, with `path` as it was before, when any byte can't be written.
    """
    layout = lay_out(arrays, attributes, virtual)
    size_bytes, sha256 = _replace(path, layout.pieces)
    return FileRecord(size_bytes, sha256, layout.digests)


def write_sealed_hdf5(path: Path, arrays: Mapping[str, Array], attributes: Attributes) -> None:
    """Like write_hdf5, with a seal at its end (seal.py), for a file whose digest stands nowhere else."""
    layout = lay_out(arrays, attributes)
    _replace(path, [*layout.pieces, seal_of(layout.pieces)])


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with the same care, replacing `path` in one step. Raises StorageError."""
    _replace(path, [memoryview(text.encode())])


def sha256_of_file(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file. Raises OSError."""
    size_bytes, digest = 0, hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            size_bytes += len(chunk)
            digest.update(chunk)
    return size_bytes, digest.hexdigest()


def sync_directory(path: Path) -> None:
    """Make the names in a directory (what was created, renamed or removed there) survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path, failure: str = "can't be written") -> Iterator[None]:
    """Turn an OSError into the StorageError that names `path`, the cause and the next step."""
    try:
        yield
    except OSError as error:
        next_step = _NEXT_STEPS.get(error.errno or 0, "")
        raise StorageError(f"{path}: {failure}: {error.strerror or error}. {next_step}".rstrip()) from error


def _replace(path: Path, pieces: Sequence[memoryview]) -> tuple[int, str]:
    """Write the pieces one after the other as the file `path`; returns its size and sha256."""
    # The name is drawn, so that two writers of one file can't write into each other's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with storage_errors(path):
            expected = _write_pieces(temporary, pieces)
            if sha256_of_file(temporary) != expected:
                raise OSError(errno.EIO, "what was read back is not what was written")
            os.rename(temporary, path)
            _remove_leftovers(path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return expected


def _write_pieces(path: Path, pieces: Sequence[memoryview]) -> tuple[int, str]:
    """Write and flush a new file; size and sha256 come from memory, not from the file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        reserve(descriptor, sum(map(len, pieces)))
        offset, digest = 0, hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            write_all(descriptor, piece, offset)
            offset += len(piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return offset, digest.hexdigest()


def reserve(descriptor: int, size_bytes: int) -> None:
    """Meet a full disk before the first byte is written, where the system can tell."""
    if size_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def write_all(descriptor: int, piece: memoryview, offset: int) -> None:
    """pwrite until nothing is left: one call writes 2 GiB at most and may stop earlier."""
    done = 0
    while done < len(piece):
        written = os.pwrite(descriptor, piece[done:], offset + done)
        if written == 0:
            raise OSError(errno.EIO, "a write made no progress")
        done += written


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this name that killed writers left. A living second writer fails, loudly, instead."""
    for leftover in path.parent.glob(f".{path.name}.????????.tmp"):
        with suppress(OSError):
            os.unlink(leftover)
