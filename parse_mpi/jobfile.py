"""Reads job files: YAML and `--set` overrides in; a checked Job out, or every problem at once with its line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from parse_mpi.errors import JobError, Problem
from parse_mpi.job import Hdf5Source, Job, Sharing
from parse_mpi.joberrors import blame_all, dotted, key_paths, show
from parse_mpi.jobpaths import (
    EDGE_FILE,
    SHIPPED_DIRS,
    encoders_of,
    find_file,
    find_own_encoders,
    mappings,
    read_edges,
    read_topology,
)
from parse_mpi.yamlfile import Document, KeyPath, Value, parse_yaml, place_of, read_yaml, write_yaml

BESIDE_THE_TRAJECTORY = ("name", "evaluate", "checkpoint", "placement", "device")
# Keys that came after the first version, with what was so before: jobs without them keep their digests.
LATER: tuple[tuple[KeyPath, Value], ...] = (
    (("method", "aggregate"), "gossip"),
    (("method", "sharing"), Sharing().model_dump(mode="json")),
    (("data", "source", "split"), "file"),
)
LEAVING_OUT_TRIES = 10  # a value, the list that it leaves empty, the section that needs it, ...
AGENTS: KeyPath = ("agents",)
SOURCE: KeyPath = ("data", "source")
PARTITION: KeyPath = ("data", "partition")
HDF5: KeyPath = (*SOURCE, "hdf5")
OWNERS: KeyPath = (*PARTITION, "file")
DECIDE_FAMILIES: tuple[KeyPath, ...] = (("encoder",), ("encoders",))
DECIDE_GRAPHS: tuple[KeyPath, ...] = (AGENTS, SOURCE, ("topology",), ("method", "name"), ("seed",), *DECIDE_FAMILIES)


@dataclass(frozen=True)
class JobFile:
    """A checked job, and where each of its keys stands."""

    job: Job
    path: Path
    lines: Mapping[KeyPath, str]

    def where(self, *keys: str | int) -> str:
        """`file:line` of a key or, where it was not written, of its nearest parent; `--set KEY` for an override."""
        return place_of(self.lines, keys)


@dataclass(frozen=True)
class Provisional:
    """What is left of a job without all that is wrong with it, to look for further problems in.

    No problem of it comes from what was left out, as long as data are asked for only if `source_known`, and ranks are
    counted only if `agents_known`.
    """

    jobfile: JobFile
    agents_known: bool
    source_known: bool


class UnsoundJobError(JobError):
    """All problems that the files themselves show. provisional: what is left without them; None if that is no job."""

    def __init__(self, problems: Sequence[Problem], provisional: Provisional | None):
        super().__init__(problems)
        self.provisional = provisional


def load_job(path: Path, overrides: Sequence[str] = ()) -> JobFile:
    """Read a job file, then apply overrides `key.path=value` in their order.

    Raises UnsoundJobError with all problems, or JobError where there is nothing that could be read as a job.

    `topology: NAME` is replaced by what its file says, the edge list that `topology.file` names by its edges, and
    relative paths of data files by absolute ones.
    """
    if not os.path.exists(path):
        raise JobError([Problem(str(path), "there is no such file", _nearby_jobs(path))])
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        document.blame((), f"the file is {show(document.value)}; a job is a mapping of keys", "jobs/ holds ready jobs")
        raise JobError(document.problems)
    for override in overrides:
        _override(document, document.value, override, path.parent)
    read_topology(document, document.value, path.parent)
    find_file(document, document.value, HDF5, path.parent)
    find_file(document, document.value, OWNERS, path.parent)
    find_file(document, document.value, EDGE_FILE, path.parent)
    read_edges(document, document.value)
    find_own_encoders(document.value, path.parent)
    job = _validate(document)
    if job is None or document.problems:
        raise UnsoundJobError(in_reading_order(document.problems), _provisional(document, path))
    return JobFile(job, path, document.lines)


def in_reading_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once, by file and line; those of overrides come first."""
    return sorted(dict.fromkeys(problems), key=_reading_order)


def dump_job(job: Job) -> str:
    """YAML of a job with every default filled in; load_job reads an equal job from it."""
    return write_yaml(job.model_dump(mode="json"))


def job_digest(job: Job) -> str:
    """sha256 (hex) of what decides the trajectory: how long, how observed and where it runs is left out."""
    settings = _trajectory(job)
    for (*above, key), before in LATER:
        section: Value = settings
        for name in above:
            section = section.get(str(name)) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(str(key)) == before:
            del section[str(key)]
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def changed_keys(old: Job, new: Job) -> list[str]:
    """What makes two digests differ, as `key.path: old -> new`."""
    return [f"{dotted(keys)}: {was} -> {is_now}" for keys, was, is_now in _changes(_trajectory(old), _trajectory(new))]


def _validate(document: Document) -> Job | None:
    """The document's value as a job; None, and problems of the document, where it is none."""
    try:
        # As JSON, because strict validation takes lists for tuples there, and a whole number for a float.
        return Job.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        blame_all(document, Job, error.errors(include_url=False))
        return None


def _trajectory(job: Job) -> dict[str, Value]:
    settings: dict[str, Value] = job.model_dump(mode="json", exclude={*BESIDE_THE_TRAJECTORY, "exchange", "train"})
    settings["exchange"] = job.exchange.model_dump(mode="json", exclude={"via", "progress"})
    length = set() if job.method.stages(job.train.rounds) else {"rounds"}  # where stages begin may depend on it
    settings["train"] = job.train.model_dump(mode="json", exclude={"on_nonfinite", *length})
    # Files may move, and may be read in either way; their content has a digest of its own.
    elsewhere = {"partition": {"file"}}
    if isinstance(job.data.source, Hdf5Source):
        elsewhere["source"] = {"hdf5", "reading"}
    settings["data"] = job.data.model_dump(mode="json", exclude=elsewhere)
    for encoder in encoders_of(settings):
        encoder.pop("file", None)
    return settings


def _changes(old: Value, new: Value, keys: KeyPath = ()) -> Iterator[tuple[KeyPath, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key), new.get(key), (*keys, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (was, is_now) in enumerate(zip(old, new, strict=True)):
            yield from _changes(was, is_now, (*keys, index))
    elif old != new:
        yield keys, show(old), show(new)


def _nearby_jobs(path: Path) -> str:
    for directory in (path.parent, *(shipped / "jobs" for shipped in SHIPPED_DIRS)):
        if jobs := [os.path.join(directory, job.name) for job in sorted(directory.glob("*.yaml")) if job != path]:
            close = get_close_matches(str(path), jobs, n=1)
            return f"did you mean {close[0]}?" if close else f"ready jobs: {', '.join(jobs)}"
    return ""


def _reading_order(problem: Problem) -> tuple[str, int]:
    source, _, line = problem.where.rpartition(":")
    return (source, int(line)) if line.isdecimal() else (problem.where, 0)


# -- overrides -------------------------------------------------------------------------------------------------------


def _override(document: Document, settings: dict[str, Value], override: str, job_dir: Path) -> None:
    """Set one `key.path=value`; what is wrong with it becomes a problem of the document."""
    name, equals, text = override.partition("=")
    first, *rest = name.strip().split(".")
    if not equals or not all([first, *rest]):
        hint = "for example --set train.optimiser.lr=0.05"
        document.problems.append(Problem(f"--set {override}", "an override is key.path=value", hint))
        document.unsure.add(())
        return
    keys: KeyPath = (first, *(int(key) if key.isdecimal() and len(key) < 10 else key for key in rest))
    if first == "topology" and rest and isinstance(settings.get(first), str):
        read_topology(document, settings, job_dir)
    try:
        given = parse_yaml(text, f"--set {dotted(keys)}", numbered=False)
        settings[first] = _replaced(settings.get(first), keys, 1, given.value)
    except JobError as error:
        document.problems.extend(error.problems)
        document.unsure.add(keys)
    else:
        document.graft(keys, given)


def _replaced(value: Value, keys: KeyPath, depth: int, new: Value) -> Value:
    """`value`, which stands at keys[:depth], with `new` in the place of what stands at `keys`."""
    if depth == len(keys):
        return new
    key, above = keys[depth], dotted(keys[:depth])
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return [*value[:key], _replaced(value[key], keys, depth + 1, new), *value[key + 1 :]]
    if isinstance(value, list):
        what, hint = (
            f"`{above}` has no entry {key}",
            "its 1 entry is counted from 0" if len(value) == 1 else f"its {len(value)} entries are counted from 0",
        )
    elif isinstance(key, str) and (value is None or isinstance(value, dict)):
        entries = value or {}
        return {**entries, key: _replaced(entries.get(key), keys, depth + 1, new)}
    else:
        what, hint = f"`{above}` is {show(value)} and has no `{key}`", f"set all of it: --set '{above}=...'"
    raise JobError([Problem(f"--set {dotted(keys)}", what, hint)])


# -- a job without what is wrong with it ----------------------------------------------------------------------------


def _provisional(document: Document, path: Path) -> Provisional | None:
    """Leave out what is wrong, then what is wrong without that, and so on until a job is left."""
    value, lines = document.value, document.lines
    wrong, unsure = set(document.wrong), document.wrong | document.unsure

    def doubtful(section: KeyPath) -> bool:
        return any(_concerns(keys, section, document.lines) for keys in unsure)

    for _ in range(LEAVING_OUT_TRIES):
        if () in wrong | unsure:
            break
        lines = {_shifted(keys, wrong): place for keys, place in lines.items() if not _is_within(keys, wrong)}
        value = _with_stand_ins(
            _without(value, wrong), any(map(doubtful, DECIDE_GRAPHS)), any(map(doubtful, (AGENTS, SOURCE, PARTITION)))
        )
        attempt = Document(value, lines)
        if job := _validate(attempt):
            return Provisional(JobFile(job, path, lines), not doubtful(AGENTS), not doubtful(SOURCE))
        wrong = {keys if _is_there(value, keys) else keys[:-1] for keys in attempt.wrong}
        unsure |= attempt.wrong
    return None


def _concerns(wrong: KeyPath, section: KeyPath, lines: Mapping[KeyPath, str]) -> bool:
    """Whether a wrong path lies in, at or above a section, or is an unknown key that may stand for it."""
    depth = len(wrong)
    if wrong[: len(section)] == section[:depth]:
        return True
    is_sibling = wrong[:-1] == section[: depth - 1] and section[:depth] not in lines
    if not is_sibling or wrong in key_paths(Job):
        return False
    may_be_absent = section in DECIDE_FAMILIES
    return not may_be_absent or bool(get_close_matches(str(wrong[-1]), [str(section[-1])]))


def _with_stand_ins(value: Value, any_graphs: bool, any_partition: bool) -> Value:
    """A job's value with harmless entries for what a job must have, and for graphs and shares of data in doubt."""
    assert isinstance(value, dict)
    settings: dict[str, Value] = {"name": "provisional", "method": {"name": "parse"}, **value}
    agents, data = settings.get("agents"), settings.get("data")
    if isinstance(agents, list):
        settings["agents"] = [{"count": 1, **entry} if isinstance(entry, dict) else entry for entry in agents]
    if any_graphs:
        settings |= {"topology": {"kind": "complete"}, "encoder": {"kind": "auto"}, "encoders": {}}
        for entry in mappings(settings.get("agents")):
            entry.pop("encoders", None)
    if any_partition:
        settings["data"] = {**(data if isinstance(data, dict) else {}), "partition": {"min_per_agent": 1}, "poor": []}
    return settings


def _without(value: Value, wrong: Set[KeyPath], keys: KeyPath = ()) -> Value:
    """A value, which stands at `keys`, without the entries at `wrong` paths."""
    if isinstance(value, dict):
        return {k: _without(entry, wrong, (*keys, k)) for k, entry in value.items() if (*keys, k) not in wrong}
    if isinstance(value, list):
        return [_without(entry, wrong, (*keys, k)) for k, entry in enumerate(value) if (*keys, k) not in wrong]
    return value


def _shifted(keys: KeyPath, wrong: Set[KeyPath]) -> KeyPath:
    """Where a path leads once the list entries at `wrong` paths are gone."""
    gone = [
        sum((*keys[:n], k) in wrong for k in range(key)) if isinstance(key, int) else 0 for n, key in enumerate(keys)
    ]
    return tuple(key - less if isinstance(key, int) else key for key, less in zip(keys, gone, strict=True))


def _is_within(keys: KeyPath, wrong: Set[KeyPath]) -> bool:
    return any(keys[:length] in wrong for length in range(1, len(keys) + 1))


def _is_there(value: Value, keys: KeyPath) -> bool:
    for key in keys:
        if isinstance(value, dict) and key in value:
            value = value[str(key)]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return False
    return True
