"""DIR/tuning.yaml: what tuning tried for every pair of data and method, how it scored, and what is frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parse_mpi.compare.directory import write_shared
from parse_mpi.compare.schema import Settings
from parse_mpi.errors import JobError, StorageError
from parse_mpi.yamlfile import read_yaml, write_yaml

Pair = tuple[str, str]  # level of data, level of method
FILE = "tuning.yaml"


@dataclass(frozen=True)
class Tried:
    """A configuration's score on validation by seed, nan where the launch failed."""

    settings: Settings
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean over seeds; nan where one failed, so that no configuration is judged on fewer seeds."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Choice:
    """What tuning found for a pair. key: of what was asked for; chosen: index into tried, None: all failed."""

    key: str
    tried: tuple[Tried, ...]
    chosen: int | None

    @property
    def settings(self) -> Settings:
        return {} if self.chosen is None else self.tried[self.chosen].settings


def read_choices(study_dir: Path) -> dict[Pair, Choice]:
    """What tuning.yaml has frozen; nothing where there is none. Raises StorageError where it can't be understood."""
    path = study_dir / FILE
    if not path.exists():
        return {}
    try:
        document = read_yaml(path)
        if document.problems:
            raise JobError(document.problems)
        found: Any = document.value
        return {(entry["data"], entry["method"]): _choice(entry) for entry in found}
    except (JobError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path}: not what was frozen there: {error}. Put it back, or move it aside.") from error


def write_choices(study_dir: Path, choices: Mapping[Pair, Choice]) -> None:
    """Freeze choices. Raises StorageError."""
    entries: list[Any] = [
        {
            "data": data,
            "method": method,
            "chosen": choice.chosen,
            "settings": deepcopy(choice.settings),  # or YAML would tell it as an alias of what was tried
            "tried": [
                {"settings": one.settings, "validation": [None if math.isnan(s) else s for s in one.scores]}
                for one in choice.tried
            ],
            "key": choice.key,
        }
        for (data, method), choice in choices.items()
    ]
    write_shared(study_dir / FILE, write_yaml(entries))


def _choice(entry: Mapping[str, Any]) -> Choice:
    tried = tuple(
        Tried(one["settings"], tuple(math.nan if s is None else float(s) for s in one["validation"]))
        for one in entry["tried"]
    )
    return Choice(str(entry["key"]), tried, None if entry["chosen"] is None else int(entry["chosen"]))
