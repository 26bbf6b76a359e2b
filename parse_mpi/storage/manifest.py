"""The manifest of a checkpoint: which agent's row of which array lies in which shard, and what every byte hashes to.

A checkpoint exists when its manifest does: the manifest is written last and holds a digest of itself.

Format versions: 1, a shard per rank; 2, the version that is written, with a view (`view`, storage/view.py) and shards
that may hold the agents of several ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from parse_mpi.errors import StorageError
from parse_mpi.storage.read import read_small_file
from parse_mpi.storage.write import write_text

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
LARGEST_MANIFEST_BYTES = 1 << 27
MOST_AGENTS = 1 << 24
_OWN_DIGEST = "manifest_sha256"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AgentRanges = tuple[tuple[Annotated[int, Field(ge=0)], int], ...]


def _refuse_overlaps(ranges: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError unless each range ends before the next begins, and the last below MOST_AGENTS."""
    previous = -1
    for first, last in ranges:
        if not previous < first <= last < MOST_AGENTS:
            raise ValueError(f"agents {first} to {last}: ids must ascend, up to {MOST_AGENTS - 1}")
        previous = last


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardFile(_Record):
    """One HDF5 file of a checkpoint; `file` is a bare name, so that a manifest can't point elsewhere."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]{4,}\.h5$")]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class ViewFile(ShardFile):
    """The view of all shards as one, for other programs: nothing is ever loaded from it."""

    file: Annotated[str, Field(pattern=r"^view\.h5$")]


class ArrayPart(_Record):
    """The rows of an array in one shard, in this order: agents in closed ranges [first, last], ascending."""

    shard: Annotated[int, Field(ge=0)]
    agents: AgentRanges
    sha256: Sha256

    @field_validator("agents")
    @classmethod
    def _ascend(cls, ranges: AgentRanges) -> AgentRanges:
        _refuse_overlaps(ranges)
        return ranges


class ArrayEntry(_Record):
    """One array over all agents that have it; `shape` is that of one agent's row."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Annotated[str, Field(pattern=r"^[<>|][biufcS][0-9]+$")]
    parts: tuple[ArrayPart, ...]

    @field_validator("parts")
    @classmethod
    def _are_disjoint(cls, parts: tuple[ArrayPart, ...]) -> tuple[ArrayPart, ...]:
        _refuse_overlaps(sorted(run for part in parts for run in part.agents))
        return parts

    @field_validator("dtype")
    @classmethod
    def _exists(cls, dtype: str) -> str:
        try:
            return np.dtype(dtype).str
        except TypeError as error:
            raise ValueError(str(error)) from error

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def agents(self) -> NDArray[np.int64]:
        """The ids that have a row, ascending int64[k]."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(from_ranges(part.agents) for part in self.parts)]))


class Manifest(_Record):
    """The content of manifest.json."""

    format_version: int
    round: Annotated[int, Field(ge=0)]
    header: dict[str, JsonValue]
    shards: tuple[ShardFile, ...]
    view: ViewFile | None = None
    arrays: dict[str, ArrayEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes in all shards together."""
        return sum(shard.size_bytes for shard in self.shards)


class ShardReport(_Record):
    """What one rank tells rank 0: its shard and the arrays in it (each with one part, in shard 0), that it has none,
    as where another rank of its node writes for it, or the reason why it failed to write one."""

    shard: ShardFile | None = None
    arrays: dict[str, ArrayEntry] = {}
    failure: str = ""


def merge(round_index: int, header: Mapping[str, JsonValue], reports: Sequence[ShardReport]) -> Manifest:
    """The manifest of all ranks' shards, in rank order, without a view.

    Raises StorageError where ranks disagree on an array's shape or dtype, or two of them hold the same agent's row.
    """
    entries: dict[str, ArrayEntry] = {}
    shards: list[ShardFile] = []
    for report in reports:
        for name, entry in report.arrays.items():
            known = entries.setdefault(name, entry.model_copy(update={"parts": ()}))
            if (known.shape, known.dtype) != (entry.shape, entry.dtype):
                raise StorageError(
                    f"{name}: a row is {known.dtype} {list(known.shape)} on one rank, "
                    f"{entry.dtype} {list(entry.shape)} on another"
                )
            parts = tuple(part.model_copy(update={"shard": len(shards)}) for part in entry.parts)
            entries[name] = known.model_copy(update={"parts": known.parts + parts})
        shards += [report.shard] if report.shard is not None else []
    for name, entry in entries.items():
        _refuse_two_owners(name, entry)
    return Manifest(
        format_version=FORMAT_VERSION,
        round=round_index,
        header=dict(header),
        shards=tuple(shards),
        arrays=entries,
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json with its own digest. Raises StorageError."""
    body = manifest.model_dump(mode="json")
    body[_OWN_DIGEST] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if len(text) > LARGEST_MANIFEST_BYTES:
        raise StorageError(f"{directory / MANIFEST_NAME}: would have {len(text):,} characters, more than is read back")
    write_text(directory / MANIFEST_NAME, text)


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json, also of an earlier format version. Raises StorageError saying what is wrong."""
    path = directory / MANIFEST_NAME
    try:
        body = json.loads(read_small_file(path, LARGEST_MANIFEST_BYTES).decode())
        digest = body.pop(_OWN_DIGEST)
    except FileNotFoundError as error:
        raise StorageError(f"{path}: missing; this checkpoint was never finished") from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StorageError(f"{path}: can't be read as a manifest: {error}") from error
    _refuse_other_formats(path, body.get("format_version"))
    text = canonical_json(body)
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise StorageError(f"{path}: was damaged or edited: its content does not have the digest that it names")
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"{path}: not a manifest: {error}") from error
    for name, entry in manifest.arrays.items():
        _refuse_more_than_the_shards(path, name, entry, manifest.shards)
    return manifest


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no spaces. Raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def to_ranges(agents: NDArray[np.int64]) -> AgentRanges:
    """Ascending ids as closed ranges: 0 1 2 7 -> (0, 2), (7, 7)."""
    if len(agents) == 0:
        return ()
    breaks = np.flatnonzero(np.diff(agents) != 1) + 1
    return tuple((int(run[0]), int(run[-1])) for run in np.split(agents, breaks))


def from_ranges(ranges: AgentRanges) -> NDArray[np.int64]:
    """The inverse of to_ranges."""
    runs = [np.arange(first, last + 1, dtype=np.int64) for first, last in ranges]
    return np.concatenate([np.empty(0, np.int64), *runs])


def _refuse_other_formats(path: Path, version: object) -> None:
    if type(version) is not int or version < 1:
        raise StorageError(f"{path}: not a manifest: format version {version!r}")
    if version > FORMAT_VERSION:
        raise StorageError(
            f"{path}: format version {version} is newer than this parse-mpi, which reads up to {FORMAT_VERSION}; "
            "go on with the version that wrote it (see provenance.yaml), or a later one"
        )


def _refuse_more_than_the_shards(path: Path, name: str, entry: ArrayEntry, shards: Sequence[ShardFile]) -> None:
    """Nothing is allocated for rows that a shard has no room for, each with the 8 bytes of its agent's id."""
    for part in entry.parts:
        if part.shard >= len(shards):
            raise StorageError(f"{path}: {name} names shard {part.shard}, which the manifest does not list")
        rows = sum(last - first + 1 for first, last in part.agents)
        if rows * (8 + entry.row_bytes) > shards[part.shard].size_bytes:
            raise StorageError(f"{path}: {name} has more bytes than {shards[part.shard].file}, in which it should lie")


def _refuse_two_owners(name: str, entry: ArrayEntry) -> None:
    agents = np.concatenate([np.empty(0, np.int64), *(from_ranges(part.agents) for part in entry.parts)])
    ids, counts = np.unique(agents, return_counts=True)
    if (counts > 1).any():
        raise StorageError(f"{name}: agent {ids[counts > 1][0]} has a row on more than one rank")
