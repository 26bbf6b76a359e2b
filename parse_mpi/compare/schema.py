"""The schema of a study file: which jobs are launched, how, how settings are tuned, and what is to be compared.

What names and values say about each other is checked by reading.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from parse_mpi.job.base import Section
from parse_mpi.run.preemption import seconds_of

DATA, METHOD = "data", "method"  # the axes that every study has
ALL_METHODS = "all"  # in tuning.space: what every method tunes

Settings = dict[str, JsonValue]  # dotted key of a job -> value
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]


def _is_a_time(text: str) -> str:
    seconds_of(text)
    return text


TimeLimit = Annotated[str, AfterValidator(_is_a_time)]


class Budget(Section):
    """gradient_steps: that every agent takes in every cell, whatever the method; train.rounds follows from it."""

    gradient_steps: Annotated[int, Field(ge=1, le=100_000_000)]


class Launches(Section):
    """How a cell is launched, and how many at a time. threads: compute threads of each rank.

    options: further words for mpiexec, before the command: on which hosts, for example.
    """

    ranks: Annotated[int, Field(ge=1, le=100_000)] = 1
    at_once: Annotated[int, Field(ge=1, le=1000)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    time_limit: TimeLimit = "1:00:00"
    options: tuple[str, ...] = ()

    @property
    def limit_s(self) -> int:
        """Seconds that one launch may take."""
        return seconds_of(self.time_limit)


class Tuning(Section):
    """Seeded random search on validation data, once for every pair of data and method, before the cells.

    configurations: how many are tried; the first is the job as it is. seeds: of the launches. seed: of the search.
    at: the level of every other axis. space: method, or `all`, to dotted key to what may be drawn (search.py).
    """

    configurations: Annotated[int, Field(ge=1, le=1000)] = 12
    seeds: Seeds
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    at: dict[str, str] = Field(default_factory=dict)
    space: Annotated[dict[str, Settings], Field(min_length=1)]


class Compare(Section):
    """What the tables say: the method under test, groups of baselines, and whose accuracy sets the targets."""

    method: str
    baselines: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    ceiling: str | None = None


class StudySpec(Section):
    """A whole study file. cells: axis -> level -> settings; axes multiply, and every cell runs on every seed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    cells: dict[str, dict[str, Settings]]
    seeds: Seeds
    budget: Budget | None = None
    launch: Launches = Launches()
    tuning: Tuning | None = None
    compare: Compare | None = None
