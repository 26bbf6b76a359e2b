"""Metrics: immutable segments while a run goes on, one metrics.h5 for plain h5py at the end.

    RUN/metrics/round-000050.h5  round-000100.h5  ...  table-agents.h5       RUN/metrics.h5

A segment holds what happened in the rounds first_round..last_round (root attributes), and each begins where the one
before it ends. Write one just before every checkpoint: a resumed run then continues the chain at the round that it
restored, and write_segment removes the segments of the earlier attempt, whose rounds are computed anew, before it adds
its own. So what lies in metrics/ is one chain without overlap at any moment, and readers need no rule to choose.

Segments and tables are the truth and stay; metrics.h5 is derived from them. Writing a segment or table removes it, so
that it is never older than they are.

Format versions: 1, without a seal; 2, the version that is written, every file sealed (seal.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parse_mpi.errors import StorageError
from parse_mpi.storage.layout import Array, Attribute, Attributes
from parse_mpi.storage.read import Content, read_hdf5
from parse_mpi.storage.write import storage_errors, sync_directory, write_sealed_hdf5

FORMAT_VERSION = 2
FORMAT = "parse-mpi metrics"

_SEGMENT_NAME = re.compile(r"round-([0-9]{6,})\.h5")
_TABLE_NAME = re.compile(r"table-([A-Za-z0-9_-]+)\.h5")


@dataclass(frozen=True)
class Metrics:
    """All metrics of a run. `attributes`: group or data set name ("" is the root) -> attributes."""

    arrays: dict[str, Array]
    attributes: dict[str, dict[str, Attribute]]

    def __getitem__(self, name: str) -> Array:
        """The data set "<group>/<name>". Raises StorageError listing what there is."""
        if name not in self.arrays:
            raise StorageError(f"the metrics hold no {name}; there are {', '.join(sorted(self.arrays)) or 'none'}")
        return self.arrays[name]


def write_segment(
    run_dir: Path, first_round: int, last_round: int, arrays: Mapping[str, Array], attributes: Attributes
) -> None:
    """Write the metrics of the rounds first_round..last_round as metrics/round-<last_round>.h5.

    arrays: "<group>/<name>" -> [n, ...]; the data sets of one group have the same n (rounds, evaluations, ...).
    Removes segments that end at first_round or later first: they are those of an attempt before a restart. Do not
    commit a checkpoint of last_round when this fails: the rounds could not be recovered after a restart.
    Raises StorageError where the disk fails, or where rounds are missing between the chain and this segment.
    """
    if first_round > last_round:
        raise ValueError(f"a segment from round {first_round} to round {last_round}")
    _row_counts(arrays)
    folder, segments = _folder(run_dir), _segments(run_dir)
    _refuse_gap(folder, max((last for last in segments if last < first_round), default=None), first_round)
    _open_for_writing(run_dir)
    with storage_errors(folder):
        for last in sorted(segments, reverse=True):  # the newest first: what is left is a chain whenever we die
            if last >= first_round:
                os.unlink(segments[last])
    root: dict[str, Attribute] = {"first_round": first_round, "last_round": last_round}
    write_sealed_hdf5(folder / f"round-{last_round:06d}.h5", arrays, _with_root(attributes, root))


def write_table(run_dir: Path, name: str, arrays: Mapping[str, Array], attributes: Attributes) -> None:
    """Write what does not change from round to round (of agents, slices) as metrics/table-<name>.h5.

    arrays: the names that the data sets have in metrics.h5, say "agents/kind". Replaces the table of that name.
    Raises StorageError.
    """
    file_name = f"table-{name}.h5"
    if not _TABLE_NAME.fullmatch(file_name):
        raise ValueError(f"{name!r}: a table's name has letters, digits, - and _ only")
    _open_for_writing(run_dir)
    write_sealed_hdf5(_folder(run_dir) / file_name, arrays, _with_root(attributes, {}))


def read_metrics(run_dir: Path) -> Metrics:
    """All metrics of a run, from metrics.h5 or, while the run goes on, from the segments and tables.

    Raises StorageError where there are none, or where a file was damaged or is missing.
    """
    path = _consolidated(run_dir)
    with storage_errors(path, "can't be read"):
        consolidated = path.exists()
    if not consolidated:
        return _join(run_dir)
    content = _read(path)
    return Metrics(content.arrays, content.attributes)


def read_table(run_dir: Path, name: str) -> Metrics | None:
    """One table of a run, finished or under way; None where there is none of that name. Raises StorageError."""
    path = _listed(run_dir, _TABLE_NAME).get(name)
    if path is None:
        return None
    content = _read(path)
    return Metrics(content.arrays, content.attributes)


def consolidate(run_dir: Path) -> Path:
    """Write metrics.h5 from all segments and tables and return its path; the same input gives the same bytes.

    Data sets of one name follow each other along axis 0 in the order of rounds. Where segments differ in the other
    axes (another number of ranks), or one lacks the data set, the rest is NaN, in integers -1, in strings empty;
    unsigned integers and booleans become signed integers where they have to hold -1. Attributes are the newest
    segment's. Raises StorageError.
    """
    metrics = _join(run_dir)
    write_sealed_hdf5(_consolidated(run_dir), metrics.arrays, metrics.attributes)
    return _consolidated(run_dir)


def require_rounds(run_dir: Path, last_round: int) -> None:
    """Raise StorageError, naming the file or the rounds, unless the segments up to `last_round` are all there."""
    put_back = "Put sound files back."
    try:
        chain = _read_chain(run_dir, last_round)
    except StorageError as error:
        raise StorageError(f"{error}. {put_back}") from error
    ends = list(_segments(run_dir))
    if last_round not in ends or chain[0].attributes[""]["first_round"] != 1:
        raise StorageError(
            f"{_folder(run_dir)}: the metrics of rounds 1 to {last_round} are not complete (segments end at rounds "
            f"{ends}). {put_back}"
        )


def segments_and_tables(run_dir: Path) -> list[Path]:
    """The files that all metrics are made from: segments in the order of rounds, then tables."""
    return [*_segments(run_dir).values(), *sorted(_listed(run_dir, _TABLE_NAME).values())]


def verify_file(path: Path) -> None:
    """Raises StorageError where a data set of a segment, a table or metrics.h5 does not have its digest."""
    _read(path)


def verify_consolidated(run_dir: Path) -> None:
    """Raises StorageError where metrics.h5 is not what the segments and tables give, attributes included."""
    path, derived = _consolidated(run_dir), _join(run_dir)
    content = _read(path)
    differing = _differing(content.arrays, derived.arrays)
    for name in sorted({*content.attributes, *derived.attributes}):
        keys = _differing(content.attributes.get(name, {}), derived.attributes.get(name, {}))
        differing += [f"attribute {key} of /{name}" for key in keys]
    if differing:
        raise StorageError(f"{path}: does not hold what the segments and tables give: {', '.join(differing)}")


# -- joining ---------------------------------------------------------------------------------------------------------


def _join(run_dir: Path) -> Metrics:
    """Segments and tables as they stand in metrics.h5."""
    segments = _read_chain(run_dir)
    tables = [_read(path) for path in sorted(_listed(run_dir, _TABLE_NAME).values())]
    if not segments and not tables:
        raise StorageError(f"{run_dir}: no metrics yet; the first are written with the first checkpoint")
    arrays = _concatenate([segment.arrays for segment in segments])
    for table in tables:
        for name, values in table.arrays.items():
            if name in arrays:
                raise StorageError(f"{_folder(run_dir)}: /{name} is in a table and in another file as well")
            arrays[name] = values
    attributes: dict[str, dict[str, Attribute]] = {}
    for content in [*tables, *segments]:
        for name, own in content.attributes.items():
            attributes.setdefault(name, {}).update(own)
    if segments:
        attributes[""]["first_round"] = segments[0].attributes[""]["first_round"]
    return Metrics(arrays, attributes)


def _read_chain(run_dir: Path, end: int | None = None) -> list[Content]:
    """The segments up to round `end`, or all, in the order of rounds; StorageError where one is missing."""
    contents, previous = [], None
    for last_round, path in _segments(run_dir).items():
        if end is not None and last_round > end:
            break
        content = _read(path)
        root = content.attributes[""]
        first_round = root.get("first_round")
        if not isinstance(first_round, int) or root.get("last_round") != last_round:
            raise StorageError(f"{path}: not the segment that its name says")
        _refuse_gap(path, previous, first_round)
        contents.append(content)
        previous = last_round
    return contents


def _concatenate(segments: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Data sets of the same name along axis 0; a segment that lacks one of a group that it has counts as unknown."""
    row_counts = [_row_counts(segment) for segment in segments]
    names = dict.fromkeys(name for segment in segments for name in segment)
    return {
        name: _stack(
            name,
            [segment.get(name) for segment in segments],
            [counts.get(_group(name), 0) for counts in row_counts],
        )
        for name in names
    }


def _stack(name: str, parts: Sequence[Array | None], row_counts: Sequence[int]) -> Array:
    """Parts along axis 0, the other axes as long as the longest; None stands for rows that nobody wrote."""
    present = [part for part in parts if part is not None]
    if len({part.ndim for part in present}) > 1:
        raise StorageError(f"/{name}: segments have different numbers of axes")
    width = tuple(max(lengths) for lengths in zip(*(part.shape[1:] for part in present), strict=True))
    is_whole = all(
        count == 0 if part is None else part.shape[1:] == width for part, count in zip(parts, row_counts, strict=True)
    )
    dtype = np.result_type(*present)
    if not is_whole and dtype.kind in "bu":
        dtype = np.result_type(dtype, np.int8)
    unknown = {"f": np.nan, "c": np.nan, "i": -1, "U": "", "S": b""}.get(dtype.kind, 0)
    joined = np.full((sum(row_counts), *width), unknown, dtype=dtype)
    start = 0
    for part, count in zip(parts, row_counts, strict=True):
        if part is not None:
            joined[(slice(start, start + count), *map(slice, part.shape[1:]))] = part
        start += count
    return joined


def _row_counts(arrays: Mapping[str, Array]) -> dict[str, int]:
    """Length of axis 0 by group. Raises ValueError where the data sets of a group differ in it."""
    counts: dict[str, int] = {}
    for name, values in arrays.items():
        if "/" not in name or values.ndim == 0:
            raise ValueError(f'{name}: a segment holds "<group>/<name>" with at least one axis')
        if counts.setdefault(_group(name), len(values)) != len(values):
            raise ValueError(f"{name}: {len(values)} rows, others of its group have {counts[_group(name)]}")
    return counts


# -- files -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Content:
    content = read_hdf5(path)
    root = content.attributes.get("", {})
    version = root.get("format_version")
    if root.get("format") != FORMAT or not isinstance(version, int) or version < 1:
        raise StorageError(f"{path}: no metrics of parse-mpi: {root.get('format')!r}, version {version!r}")
    if version > FORMAT_VERSION:
        raise StorageError(
            f"{path}: format version {version} is newer than this parse-mpi, which reads up to {FORMAT_VERSION}; "
            "go on with the version that wrote it (see provenance.yaml), or a later one"
        )
    if version > 1 and not content.is_sealed:
        raise StorageError(f"{path}: was damaged or edited: its last line is not the sha256 of the rest")
    return content


def _with_root(attributes: Attributes, root: Mapping[str, Attribute]) -> Attributes:
    own: dict[str, Attribute] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    return {**attributes, "": {**attributes.get("", {}), **own, **root}}


def _open_for_writing(run_dir: Path) -> None:
    """Make metrics/ if need be, though not a run directory that has vanished; remove what metrics.h5 is out of date."""
    with storage_errors(_folder(run_dir)):
        _folder(run_dir).mkdir(exist_ok=True)
        _consolidated(run_dir).unlink(missing_ok=True)
        sync_directory(run_dir)


def _refuse_gap(path: Path, previous: int | None, first_round: int) -> None:
    """A chain begins at round 0 or 1 and continues where it ends."""
    is_next = first_round <= 1 if previous is None else first_round == previous + 1
    if not is_next:
        raise StorageError(
            f"{path}: the chain ends at round {previous or 0} and goes on at round {first_round}; "
            "files of metrics/ are missing in between"
        )


def _segments(run_dir: Path) -> dict[int, Path]:
    """Last round -> file, ascending."""
    return dict(sorted((int(number), path) for number, path in _listed(run_dir, _SEGMENT_NAME).items()))


def _listed(run_dir: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """What the pattern's group matches in a file's name -> file."""
    folder = _folder(run_dir)
    with storage_errors(folder, "can't be read"):
        entries = list(folder.iterdir()) if folder.is_dir() else []
    return {match[1]: entry for entry in entries if (match := pattern.fullmatch(entry.name))}


def _differing(given: Mapping[str, Attribute], expected: Mapping[str, Attribute]) -> list[str]:
    """Names of what only one of them has, or has another value for."""
    return sorted(
        name
        for name in {*given, *expected}
        if name not in given or name not in expected or not _same(given[name], expected[name])
    )


def _same(first: Attribute, second: Attribute) -> bool:
    first, second = np.asarray(first), np.asarray(second)
    return first.dtype.kind == second.dtype.kind and np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")


def _group(name: str) -> str:
    return name.rpartition("/")[0]


def _folder(run_dir: Path) -> Path:
    return Path(run_dir) / "metrics"


def _consolidated(run_dir: Path) -> Path:
    return Path(run_dir) / "metrics.h5"
