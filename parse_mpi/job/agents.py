"""Agents: who holds what."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from parse_mpi.job.base import Count, Section
from parse_mpi.job.encoder import Encoder

AgentId = Annotated[int, Field(ge=0, lt=1_000_000)]


class AgentKind(Section):
    """`count` agents that hold `modalities`; ids follow the order of the list.

    encoders: by modality, where these agents differ from what the job says for all.
    """

    modalities: Annotated[tuple[str, ...], Field(min_length=1)]
    count: Count
    encoders: dict[str, Encoder] = Field(default_factory=dict)

    @field_validator("modalities")
    @classmethod
    def _no_modality_twice(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) != len(modalities):
            raise ValueError("a modality is listed twice")
        return modalities


class Share(Section):
    """A share of the agents, drawn from the job's seed: of those that hold exactly `holding`, or of all."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    holding: tuple[str, ...] | None = None


# Which agents something concerns: their ids, or a share of them.
Chosen = Annotated[tuple[AgentId, ...], Field(min_length=1)] | Share
