"""The manifest of a checkpoint: which agent's row of which array lies in which shard, and what every byte hashes to.

A checkpoint exists when its manifest does: the manifest is written last and holds a digest of itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from parse_mpi.errors import StorageError
from parse_mpi.storage.write import write_text

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
_OWN_DIGEST = "manifest_sha256"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
AgentRanges = tuple[tuple[Annotated[int, Field(ge=0)], int], ...]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardFile(_Record):
    """One HDF5 file of a checkpoint; `file` is a bare name, so that a manifest can't point elsewhere."""

    file: Annotated[str, Field(pattern=r"^shard-[0-9]{4,}\.h5$")]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class ArrayPart(_Record):
    """The rows of an array in one shard, in this order: agents in closed ranges [first, last], ascending."""

    shard: Annotated[int, Field(ge=0)]
    agents: AgentRanges
    sha256: Sha256


class ArrayEntry(_Record):
    """One array over all agents that have it; `shape` is that of one agent's row."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Annotated[str, Field(pattern=r"^[<>|][biufcS][0-9]+$")]
    parts: tuple[ArrayPart, ...]


class Manifest(_Record):
    """The content of manifest.json."""

    format_version: int
    round: Annotated[int, Field(ge=0)]
    header: dict[str, JsonValue]
    shards: tuple[ShardFile, ...]
    arrays: dict[str, ArrayEntry]

    @property
    def size_bytes(self) -> int:
        """Bytes in all shards together."""
        return sum(shard.size_bytes for shard in self.shards)


class ShardReport(_Record):
    """What one rank tells rank 0 about its shard: its arrays (each with one part), or the reason why there is none."""

    shard: ShardFile | None = None
    arrays: dict[str, ArrayEntry] = {}
    failure: str = ""


def merge(round_index: int, header: Mapping[str, JsonValue], reports: Sequence[ShardReport]) -> Manifest:
    """The manifest of all ranks' shards, in rank order.

    Raises StorageError where ranks disagree on an array's shape or dtype, or two of them hold the same agent's row.
    """
    entries: dict[str, ArrayEntry] = {}
    for report in reports:
        for name, entry in report.arrays.items():
            known = entries.setdefault(name, entry.model_copy(update={"parts": ()}))
            if (known.shape, known.dtype) != (entry.shape, entry.dtype):
                raise StorageError(
                    f"{name}: a row is {known.dtype} {list(known.shape)} on one rank, "
                    f"{entry.dtype} {list(entry.shape)} on another"
                )
            entries[name] = known.model_copy(update={"parts": known.parts + entry.parts})
    for name, entry in entries.items():
        _refuse_two_owners(name, entry)
    return Manifest(
        format_version=FORMAT_VERSION,
        round=round_index,
        header=dict(header),
        shards=tuple(report.shard for report in reports if report.shard is not None),
        arrays=entries,
    )


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write manifest.json with its own digest. Raises StorageError."""
    body = manifest.model_dump(mode="json")
    body[_OWN_DIGEST] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    write_text(directory / MANIFEST_NAME, json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(directory: Path) -> Manifest:
    """Read and check manifest.json. Raises StorageError saying what is wrong with it."""
    path = directory / MANIFEST_NAME
    try:
        body = json.loads(path.read_bytes().decode())
        digest = body.pop(_OWN_DIGEST)
    except FileNotFoundError as error:
        raise StorageError(f"{path}: missing; this checkpoint was never finished") from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StorageError(f"{path}: can't be read as a manifest: {error}") from error
    if body.get("format_version") != FORMAT_VERSION:
        version = body.get("format_version")
        raise StorageError(f"{path}: format version {version}; this parse-mpi reads version {FORMAT_VERSION}")
    text = canonical_json(body)
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise StorageError(f"{path}: was damaged or edited: its content does not have the digest that it names")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"{path}: not a manifest: {error}") from error


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


def _refuse_two_owners(name: str, entry: ArrayEntry) -> None:
    agents = np.concatenate([np.empty(0, np.int64), *(from_ranges(part.agents) for part in entry.parts)])
    ids, counts = np.unique(agents, return_counts=True)
    if (counts > 1).any():
        raise StorageError(f"{name}: agent {ids[counts > 1][0]} has a row on more than one rank")
