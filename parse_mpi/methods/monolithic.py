"""The monolithic baseline: one shared embedding for everybody, the opposite of partial sharing (method.md 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import MonolithicMethod
from parse_mpi.methods.base import ALL, SliceSpec, ids_of, shared
from parse_mpi.methods.dsgd import OneHead, encoder_slices
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Monolithic(OneHead):
    """A stem for each modality among its holders, trunk and head among all agents."""

    options: MonolithicMethod

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        here = [agent for agent in agents if agent.modalities]
        table = [
            *encoder_slices(agents, roster or agents, "holders"),
            shared("trunk", ("trunk.",), here, ALL),
            shared("label_head", ("label_head.",), here, ALL),
        ]
        held = [spec for spec in table if spec.holders]
        return tuple(held if self.options.surgery == "none" else (in_camps(spec, here) for spec in held))

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.monolithic_network import MonolithicNetwork

        return MonolithicNetwork(agent, shapes, class_count, self.options, seed)


def in_camps(spec: SliceSpec, agents: Sequence[Agent]) -> SliceSpec:
    """The same slice, where updates of unimodal and of multimodal holders travel apart if it has both."""
    held = [agent for agent in agents if agent.id in spec.holders]
    camps = [ids_of([agent for agent in held if (len(agent.modalities) > 1) == several]) for several in (False, True)]
    return replace(spec, camps=tuple(camps)) if all(camps) else spec
