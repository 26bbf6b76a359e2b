"""Reads a study file: a checked StudySpec with the line of every key, or every problem at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.compare.schema import ALL_METHODS, DATA, METHOD, Settings, StudySpec
from parse_mpi.compare.search import read_draw
from parse_mpi.errors import StudyError
from parse_mpi.joberrors import dotted, either, key_hint
from parse_mpi.jobfile import in_reading_order
from parse_mpi.specfile import SpecFile, read_spec
from parse_mpi.yamlfile import Document, KeyPath

BASE = "job"  # in a level of data: the job file, not a key of it
AXIS = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,39}")  # those of all axes are the name of a directory
ROUNDS = "train.rounds"
OURS = {"seed": "`seeds` sets it", "evaluate.test": "tuning leaves the test split out, cells do not"}


@dataclass(frozen=True)
class StudyFile(SpecFile[StudySpec]):
    """A checked study."""

    def base_job(self, data: str) -> Path:
        """The job file that a level of data names."""
        return base_job(self.path, self.spec.cells[DATA][data])


def read_study(path: Path) -> StudyFile:
    """Read a study file. Raises StudyError with all that it shows to be wrong by itself; its jobs come later."""
    document, spec = read_spec(path, StudySpec, StudyError, "study", "jobs/studies holds ready ones")
    _check_axes(document, spec, path)
    _check_budget(document, spec)
    _check_seeds(document, spec)
    _check_tuning(document, spec)
    _check_comparison(document, spec)
    if document.problems:
        raise StudyError(in_reading_order(document.problems))
    return StudyFile(spec, path, document.text, document.lines)


def base_job(study: Path, level: Settings) -> Path:
    return Path(os.path.normpath(study.parent / os.path.expanduser(str(level[BASE]))))


def _check_axes(document: Document, spec: StudySpec, path: Path) -> None:
    for axis in (DATA, METHOD):
        if axis not in spec.cells:
            document.blame(("cells", axis), f"`cells.{axis}` is missing; every study has the axes {DATA} and {METHOD}")
    for axis, levels in spec.cells.items():
        if not AXIS.fullmatch(axis) or axis == "seed":
            document.blame(("cells", axis), f"`{axis}` can't be the name of an axis", "letters, digits and _; not seed")
        if not levels:
            document.blame(("cells", axis), f"the axis {axis} has no level")
        for level, settings in levels.items():
            _check_level(document, ("cells", axis, level), settings)
    for level, settings in spec.cells.get(DATA, {}).items():
        keys: KeyPath = ("cells", DATA, level)
        if not isinstance(settings.get(BASE), str):
            document.blame(keys, f"`{dotted(keys)}.{BASE}` is missing; it must be a job file, relative to this file")
        elif not base_job(path, settings).is_file():
            document.blame((*keys, BASE), f"there is no job file {base_job(path, settings)}")


def _check_level(document: Document, keys: KeyPath, settings: Settings) -> None:
    axis, level = keys[1:]
    if not LEVEL.fullmatch(str(level)):
        hint = "at most 40 letters, digits and . _ : + -, the first a letter or a digit"
        document.blame(keys, f"`{level}` can't be the name of a level", hint)
    for key in settings:
        if key == BASE and axis != DATA:
            document.blame((*keys, key), f"only levels of {DATA} name a job; here {axis}.{level} does")
        _check_key(document, (*keys, key), key)


def _check_key(document: Document, keys: KeyPath, key: str) -> None:
    if key in OURS:
        document.blame(keys, f"`{key}` can't be set here: {OURS[key]}")
    elif not all(key.split(".")):
        document.blame(keys, f"`{key}` is no key of a job", "for example train.optimiser.lr")


def _check_budget(document: Document, spec: StudySpec) -> None:
    """Whoever sets the rounds where a budget of steps does would see no difference, and not know why."""
    sections: dict[KeyPath, Settings] = {
        ("cells", axis, level): settings for axis, levels in spec.cells.items() for level, settings in levels.items()
    }
    if spec.tuning:
        sections |= {("tuning", "space", method): space for method, space in spec.tuning.space.items()}
    for keys, settings in sections.items():
        if spec.budget and ROUNDS in settings:
            document.blame((*keys, ROUNDS), f"`{ROUNDS}` can't be set here: `budget` does", "leave one of the two out")


def _check_seeds(document: Document, spec: StudySpec) -> None:
    for keys, seeds in (("seeds",), spec.seeds), (("tuning", "seeds"), spec.tuning.seeds if spec.tuning else ()):
        for index, seed in enumerate(seeds):
            if seed in seeds[:index]:
                document.blame((*keys, index), f"seed {seed} stands in `{dotted(keys)}` twice")
    for index, seed in enumerate(spec.tuning.seeds if spec.tuning else ()):
        if seed in spec.seeds:
            what = f"seed {seed} is one of the `seeds` that the methods are compared on"
            document.blame(("tuning", "seeds", index), what, "tune on others, or the result was chosen to fit")


def _check_tuning(document: Document, spec: StudySpec) -> None:
    if (tuning := spec.tuning) is None:
        return
    axes = {axis: levels for axis, levels in spec.cells.items() if axis not in (DATA, METHOD)}
    for axis, level in tuning.at.items():
        if axis not in axes:
            document.blame(("tuning", "at", axis), f"`tuning.at.{axis}`: there is no such axis", _allowed(axis, axes))
        elif level not in axes[axis]:
            document.blame(("tuning", "at", axis), f"the axis {axis} has no level {level}", _allowed(level, axes[axis]))
    missing = [axis for axis, levels in axes.items() if len(levels) > 1 and axis not in tuning.at]
    if missing:
        document.blame(("tuning", "at"), f"`tuning.at` must say at which level of {either(missing)} is tuned")
    methods = [ALL_METHODS, *spec.cells.get(METHOD, {})]
    for method, space in tuning.space.items():
        keys: KeyPath = ("tuning", "space", method)
        if method not in methods:
            document.blame(keys, f"the axis {METHOD} has no level {method}", _allowed(method, methods))
        for key, value in space.items():
            _check_key(document, (*keys, key), key)
            try:
                read_draw(value)
            except ValueError as error:
                document.blame((*keys, key), f"`{key}`: {error}")


def _check_comparison(document: Document, spec: StudySpec) -> None:
    if (compare := spec.compare) is None:
        return
    named: list[tuple[KeyPath, str]] = [(("compare", "method"), compare.method)]
    named += [(("compare", "ceiling"), compare.ceiling)] if compare.ceiling else []
    for group, levels in compare.baselines.items():
        named += [(("compare", "baselines", group, index), level) for index, level in enumerate(levels)]
        if compare.method in levels:
            keys: KeyPath = ("compare", "baselines", group, levels.index(compare.method))
            document.blame(keys, f"{compare.method} is the method under test, not a baseline")
    methods = list(spec.cells.get(METHOD, {}))
    for place, level in named:
        if level not in methods:
            document.blame(place, f"the axis {METHOD} has no level {level}", _allowed(level, methods))


def _allowed(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    return key_hint(name, list(known)) if known else "leave it out"
