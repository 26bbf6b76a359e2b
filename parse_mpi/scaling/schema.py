"""The schema of a scaling study: one job, measured along curves of ranks, nodes or agents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from parse_mpi.compare.schema import Launches, Settings, TimeLimit
from parse_mpi.job.base import Count, Section

Ascending = Annotated[tuple[Count, ...], Field(min_length=1)]


def _ascending(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if list(sizes) != sorted(set(sizes)):
        raise ValueError("must ascend, every number once")
    return sizes


class _OverRanks(Section):
    """ranks_per_node: None puts all ranks on one node."""

    ranks: Ascending
    ranks_per_node: Count | None = None

    @field_validator("ranks")
    @classmethod
    def _ranks_ascend(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return _ascending(sizes)

    def nodes(self, ranks: int) -> int:
        return -(-ranks // (self.ranks_per_node or ranks))


class Strong(_OverRanks):
    """The same agents on more and more ranks; None: those of the job."""

    kind: Literal["strong"]
    agents: Count | None = None

    def sizes(self, of_job: int) -> list[tuple[int, int, int]]:
        """(ranks, nodes, agents) of each point; of_job: agents of the job."""
        return [(ranks, self.nodes(ranks), self.agents or of_job) for ranks in self.ranks]


class Weak(_OverRanks):
    """The same agents on each of more and more ranks."""

    kind: Literal["weak"]
    agents_per_rank: Count

    def sizes(self, of_job: int) -> list[tuple[int, int, int]]:
        return [(ranks, self.nodes(ranks), ranks * self.agents_per_rank) for ranks in self.ranks]


class Group(Section):
    """More and more agents on one rank."""

    kind: Literal["group"]
    agents: Ascending

    @field_validator("agents")
    @classmethod
    def _agents_ascend(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        return _ascending(sizes)

    def sizes(self, of_job: int) -> list[tuple[int, int, int]]:
        return [(1, 1, agents) for agents in self.agents]


Curve = Annotated[Strong | Weak | Group, Field(discriminator="kind")]


class PointLaunches(Section):
    """How a point is launched: by mpiexec from here, one after the other, or as a Slurm job of its own.

    threads: compute threads of each rank. options: further words for mpiexec.
    """

    by: Literal["mpiexec", "slurm"] = "mpiexec"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    time_limit: TimeLimit = "1:00:00"
    options: tuple[str, ...] = ()

    def pool(self) -> Launches:
        """The same in the words of `compare`, for one launch at a time: nothing else may run while it is timed."""
        return Launches(at_once=1, threads=self.threads, time_limit=self.time_limit, options=self.options)


class ScalingSpec(Section):
    """A whole study file. job: relative to it; settings: dotted key of the job -> value.

    rounds: measured in each launch, after warm_up others. repeats: launches of each point.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    job: str
    settings: Settings = Field(default_factory=dict)
    curves: Annotated[dict[str, Curve], Field(min_length=1)]
    rounds: Count = 30
    warm_up: Count = 5
    repeats: Annotated[int, Field(ge=1, le=1000)] = 3
    launch: PointLaunches = PointLaunches()
