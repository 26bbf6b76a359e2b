"""Events: what changes in mid-run, and after how many rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.agents import AgentId, Chosen
from parse_mpi.job.base import Section

RoundsDone = Annotated[int, Field(ge=0, le=1_000_000)]


class SensorEvent(Section):
    """After `round` rounds the agents lose a modality, or gain one."""

    kind: Literal["lose", "gain"]
    round: RoundsDone
    agents: Chosen
    modality: str


class PresenceEvent(Section):
    """After `round` rounds the agents leave, or join; whose first such event is to join is away until then."""

    kind: Literal["leave", "join"]
    round: RoundsDone
    agents: Chosen


class LinkEvent(Section):
    """After `round` rounds a modality's graphs, or links between two agents on all graphs, are cut or heal."""

    kind: Literal["cut", "heal"]
    round: RoundsDone
    modality: str | None = None
    links: Annotated[tuple[tuple[AgentId, AgentId], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> LinkEvent:
        if (self.modality is None) == (self.links is None):
            raise ValueError("say which modality's graphs, or which links: [[0, 1], ...], one of the two")
        if any(a == b for a, b in self.links or ()):
            raise ValueError("a link joins two different agents")
        return self


Event = Annotated[SensorEvent | PresenceEvent | LinkEvent, Field(discriminator="kind")]
