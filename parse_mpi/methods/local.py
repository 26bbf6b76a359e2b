"""Local learning: PARSE's network and loss without any exchange, the floor of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parse_mpi.methods.base import SliceSpec, private
from parse_mpi.methods.parse import Parse
from parse_mpi.population import Agent


@dataclass(frozen=True)
class Local(Parse):
    """The same slices, none of them shared."""

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        return tuple(map(private, super().slices(agents, roster)))
