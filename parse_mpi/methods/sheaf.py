"""Sheaf-DMFL: shared encoders, and heads of different sizes that restriction maps tie together (arXiv 2506.22374)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import SheafMethod
from parse_mpi.methods.base import ALL, Coupling, SliceSpec, equal_sets, ids_of, private, shared
from parse_mpi.methods.dsgd import OneHead, encoder_slices
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Sheaf(OneHead):
    """Encoders are averaged among their holders; heads stay apart and are coupled over the graph of all agents."""

    options: SheafMethod

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        here = [agent for agent in agents if agent.modalities]
        table = list(encoder_slices(agents, roster or agents, "holders"))
        if self.options.fusion == "attention":
            table += [shared("attention", ("fusion.",), here, ALL), self._head("label_head", here, here)]
        else:
            table += [self._head(f"label_head[{held[0].kind}]", held, here) for held in equal_sets(here)]
        return tuple(spec for spec in table if spec.holders)

    def _head(self, name: str, holders: Sequence[Agent], here: Sequence[Agent]) -> SliceSpec:
        o = self.options
        coupling = Coupling(ids_of(here), ALL, o.edge_width, o.coupling, o.map_rate)
        return replace(private(shared(name, ("label_head.",), holders, "")), coupling=coupling)

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.label_network import LabelNetwork

        return LabelNetwork(agent, shapes, class_count, self.options, seed)
