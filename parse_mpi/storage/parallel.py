"""One file for all ranks: a shard that they write together by parallel HDF5, where h5py was built with MPI.

1. Rank 0 lays the file out and writes its headers with checked system calls; room for all rows is reserved.
2. All ranks open it by MPI-IO, write their rows collectively, close it and flush it.
3. Each array is read back by one rank, and must have the digests that the owners of its rows took from memory.
4. Rank 0 writes the headers once more, now with those digests in them, and hashes the file.

So libhdf5 and MPI-IO carry rows only, and neither is believed. Rows are read back by a rank that most of them are not
of, because what two nodes write into one page can look right to both and be lost for a third.

After every step the ranks agree that none has failed, and otherwise abandon the attempt together. What can't be caught
is an MPI library that leaves a collective call on one rank while the others wait in it, as when a rank loses the file
system in the middle of step 2: then the launch stands still until its time limit ends it, and the checkpoints that were
there stay.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from parse_mpi.errors import LaunchError, StorageError
from parse_mpi.storage.commit import make_attempt
from parse_mpi.storage.layout import Array, Headers, bytes_of, lay_out_headers
from parse_mpi.storage.library import hdf5_library, is_parallel
from parse_mpi.storage.manifest import ArrayEntry, ArrayPart, ShardFile, ShardReport, from_ranges, merge, to_ranges
from parse_mpi.storage.shard import AgentArray, refuse_nonfinite, shard_attributes, shard_entry
from parse_mpi.storage.write import reserve, storage_errors, sync_directory, write_all

_FILE = "shard-0000.h5"
_READ_BYTES = 1 << 22
_NO_DIGEST = "0" * 64
_HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)

Rows: TypeAlias = tuple[NDArray[np.int64], Array]


class ParallelWorld(Protocol):
    """What writing together needs of the MPI world. comm: an mpi4py communicator of these ranks."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def comm(self) -> Any: ...
    def all_json(self, value: Any) -> list[Any]:
        """Values of all ranks in rank order, on every rank."""


def require_parallel_hdf5(world: ParallelWorld) -> None:
    """Raises LaunchError on every rank where h5py was built without MPI on any of them."""
    serial = world.all_json("" if is_parallel() else hdf5_library())
    if found := [f"rank {rank} has {library}" for rank, library in enumerate(serial) if library]:
        raise LaunchError(
            f"checkpoint.shards: single needs an h5py that was built with MPI; {found[0]}.\n"
            "Set checkpoint.shards: auto, which needs no such thing, or build h5py as docs/cluster.md, section 8, says."
        )


def write_single(world: ParallelWorld, attempt: Path, round_index: int, arrays: Sequence[AgentArray]) -> ShardReport:
    """Write the one shard of an attempt; every rank calls it, each with the rows of its own agents.

    Rows lie in ascending id, and names, attributes and digests are those of a shard that one rank writes for all
    agents. Rank 0's report tells of the file, or of all that failed on any rank; the others' are empty.
    """
    try:
        return _write(world, attempt, round_index, arrays)
    except StorageError as error:
        return ShardReport(failure=str(error) if world.rank == 0 else "")


def _write(world: ParallelWorld, attempt: Path, round_index: int, arrays: Sequence[AgentArray]) -> ShardReport:
    path = attempt / _FILE
    with _agreed(world, path):
        for array in arrays:
            refuse_nonfinite(array)
    own = {array.agents_name: (array.agents, array.agents) for array in arrays}
    own |= {array.name: (array.agents, np.ascontiguousarray(array.values)) for array in arrays}
    entries = _entries_of_all(world, round_index, own)
    kinds = {name: _kind(entry) for name, entry in entries.items()}
    attributes = shard_attributes(round_index)
    headers = lay_out_headers(kinds, dict.fromkeys(kinds, _NO_DIGEST), attributes)
    with _agreed(world, path):
        if world.rank == 0:
            make_attempt(attempt)
            _create(path, headers)
    _write_rows(world, path, {name: entries[name] for name in headers.offsets}, own)
    with _agreed(world, path):
        turn = list(entries)[world.rank :: world.size]
        proven = {name: _prove(path, name, entries[name], headers.offsets.get(name, 0)) for name in turn}
    digests = {name: digest for told in world.all_json(proven) for name, digest in told.items()}
    if world.rank:
        return ShardReport()
    with storage_errors(path):
        shard = _finish(path, lay_out_headers(kinds, digests, attributes), kinds, digests)
    named = [name for name in entries if not name.endswith("/agents")]  # ids have no entry in a manifest
    return ShardReport(shard=shard, arrays={name: _whole(entries[name], digests[name]) for name in named})


@contextmanager
def _agreed(world: ParallelWorld, path: Path) -> Iterator[None]:
    """At the end of the block all ranks learn how it went; raises StorageError on all of them if it failed on one."""
    failure = ""
    try:
        with storage_errors(path):
            yield
    except StorageError as error:
        failure = str(error)
    except _HDF5_ERRORS as error:
        failure = f"{path}: can't be written: {error}"
    told = enumerate(world.all_json(failure))
    if failures := [f"rank {rank}: {reason}" for rank, reason in told if reason]:
        raise StorageError("; ".join(failures))


# -- what there is to write ------------------------------------------------------------------------------------------


def _entries_of_all(world: ParallelWorld, round_index: int, own: Mapping[str, Rows]) -> dict[str, ArrayEntry]:
    """Every data set with one part for each rank that has rows of it, and the digest of that part from memory.

    The same on all ranks. Raises StorageError on all of them where their arrays do not fit together.
    """
    arrays = {
        name: shard_entry(agents, values, sha256(bytes_of(values)).hexdigest())
        for name, (agents, values) in own.items()
    }
    told = world.all_json(ShardReport(arrays=arrays).model_dump(mode="json"))
    return merge(round_index, {}, [ShardReport.model_validate(report, strict=False) for report in told]).arrays


def _kind(entry: ArrayEntry) -> Array:
    """An array with the shape and dtype of the data set, but no memory."""
    return np.broadcast_to(np.empty((), entry.dtype), (len(entry.agents), *entry.shape))


def _whole(entry: ArrayEntry, digest: str) -> ArrayEntry:
    """The entry of the data set in the one shard that holds all its rows."""
    part = ArrayPart(shard=0, agents=to_ranges(entry.agents), sha256=digest)
    return entry.model_copy(update={"parts": (part,)})


# -- the steps -------------------------------------------------------------------------------------------------------


def _create(path: Path, headers: Headers) -> None:
    """A new file with headers, in which all rows have room."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        os.ftruncate(descriptor, headers.size_bytes)
        reserve(descriptor, headers.size_bytes)
    finally:
        os.close(descriptor)
    _write_headers(path, headers)


def _write_headers(path: Path, headers: Headers) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset, piece in headers.pieces.items():
            write_all(descriptor, piece, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_rows(world: ParallelWorld, path: Path, entries: Mapping[str, ArrayEntry], own: Mapping[str, Rows]) -> None:
    """All ranks write their rows of these data sets into the file, by the same collective calls in the same order."""
    with _agreed(world, path):
        os.close(os.open(path, os.O_RDWR))  # what fails on some ranks only must do so before MPI opens it on all
    with _agreed(world, path):
        file = h5py.File(path, "r+", driver="mpio", comm=world.comm)
    try:
        with _agreed(world, path):
            data_sets = {name: file[name].id for name in entries}
        with _agreed(world, path):
            _write_own(data_sets, entries, own)
    finally:
        with _agreed(world, path):
            file.close()
    with _agreed(world, path):
        _sync(path)


def _write_own(data_sets: Mapping[str, Any], entries: Mapping[str, ArrayEntry], own: Mapping[str, Rows]) -> None:
    """This rank's part of all collective writes. It goes on after one that failed: the other ranks do, and wait."""
    collective = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    collective.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    failures: list[str] = []
    for name, entry in entries.items():
        no_rows = np.empty(0, np.int64), np.empty((0, *entry.shape), entry.dtype)
        agents, values = own.get(name, no_rows)
        in_file = data_sets[name].get_space()
        in_file.select_none()
        for first, last in to_ranges(np.searchsorted(entry.agents, agents)):
            start, count = (first, *(0 for _ in entry.shape)), (last - first + 1, *entry.shape)
            in_file.select_hyperslab(start, count, op=h5py.h5s.SELECT_OR)
        try:
            data_sets[name].write(h5py.h5s.create_simple(values.shape), in_file, values, dxpl=collective)
        except _HDF5_ERRORS as error:
            failures.append(f"/{name}: {error}")
    if failures:
        raise OSError(errno.EIO, failures[0])


def _sync(path: Path) -> None:
    """Flush what this node wrote."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prove(path: Path, name: str, entry: ArrayEntry, offset: int) -> str:
    """Read a data set back; its sha256, once the rows of every rank have proved to have theirs."""
    ranks = np.repeat(np.arange(len(entry.parts)), [len(from_ranges(part.agents)) for part in entry.parts])
    agents = np.concatenate([from_ranges(part.agents) for part in entry.parts])
    rank_of_row = ranks[np.argsort(agents)]
    row_bytes = np.dtype(entry.dtype).itemsize * math.prod(entry.shape)
    whole, parts = sha256(), [sha256() for _ in entry.parts]
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        for run in np.split(rank_of_row, np.flatnonzero(np.diff(rank_of_row)) + 1):
            for chunk in _chunks(file, len(run) * row_bytes):
                whole.update(chunk)
                parts[run[0]].update(chunk)
    if [part.hexdigest() for part in parts] != [part.sha256 for part in entry.parts]:
        raise OSError(errno.EIO, f"what was read back of /{name} is not what was written")
    return whole.hexdigest()


def _finish(path: Path, headers: Headers, kinds: Mapping[str, Array], digests: Mapping[str, str]) -> ShardFile:
    """Write the headers with the digests in them; the file's record, once all of it has proved to be what was meant."""
    _write_headers(path, headers)
    sync_directory(path.parent)
    meant = {offset: (len(piece), sha256(piece).hexdigest()) for offset, piece in headers.pieces.items()}
    meant |= {offset: (kinds[name].nbytes, digests[name]) for name, offset in headers.offsets.items()}
    whole = sha256()
    with open(path, "rb", buffering=0) as file:
        for _, (size_bytes, digest) in sorted(meant.items()):
            part = sha256()
            for chunk in _chunks(file, size_bytes):
                whole.update(chunk)
                part.update(chunk)
            if part.hexdigest() != digest:
                raise OSError(errno.EIO, "what was read back is not what was written")
    return ShardFile(file=path.name, size_bytes=headers.size_bytes, sha256=whole.hexdigest())


def _chunks(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """The next so many bytes of a file, in pieces. Raises OSError where the file ends before."""
    while size_bytes:
        chunk = file.read(min(size_bytes, _READ_BYTES))
        if not chunk:
            raise OSError(errno.EIO, "the file ends too early")
        yield chunk
        size_bytes -= len(chunk)
