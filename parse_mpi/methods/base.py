"""What a method is made of: agents, slices, and the questions that the rest asks it.

Light commands import this, so that no module of methods/ may import torch at its top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from parse_mpi.job.method import BetaSchedule
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output

# Names of graphs that are no modality's: a modality's name has no space, so that none can be mistaken for another.
ALL, MULTIMODAL = "all agents", "multimodal agents"
LOSS_TERMS = ("total", "ensemble", "heads", "contrastive")


@dataclass(frozen=True)
class SliceSpec:
    """A named block of parameters, who holds it and among whom it mixes (method.md 1.4).

    parameters: prefixes of the network's parameter names. holders: agent ids, ascending.
    groups: disjoint groups of holders; agents mix this slice inside their group only, and not at all without one.
    graph: the name of the graph that it mixes over; slices with equal groups share one.
    modality: whose graph that is, "" where it is no single modality's.
    every: it mixes in every round whose number, counted from 1, this divides.
    rate: it takes plain gradient steps of this length, whatever the job's optimiser is; None: it takes that one's.
    """

    name: str
    parameters: tuple[str, ...]
    holders: tuple[int, ...]
    graph: str
    groups: tuple[tuple[int, ...], ...]
    modality: str = ""
    every: int = 1
    rate: float | None = None


class Method(Protocol):
    """A way to learn: which slices there are, and what an agent minimises and predicts."""

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """The slice table; every parameter of every agent's network lies in exactly one slice.

        roster: every agent as it ever is, in whose order families are named; without it, `agents`.
        """

    def problems(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> list[str]:
        """What is wrong with the method's options for these agents, worded for the user; roster as for `slices`."""

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        """A plain module for an agent of this blueprint, at its initial values; shapes: modality -> sample shape."""

    @property
    def common_start(self) -> bool:
        """Whether agents of one blueprint have the same initial values."""

    @property
    def schedule(self) -> BetaSchedule:
        """How the weight of the alignment term goes over the rounds."""

    def alignment_weight(self, kind: tuple[str, ...], agents: Sequence[Agent]) -> float:
        """The factor in front of the alignment term for agents that hold `kind`, before the schedule."""

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        """Loss terms [..., T] in the order of LOSS_TERMS; the first is what the gradient is taken of.

        y < 0: the sample has no label. mask [..., B]: 0 for padding. alignment_weight [...]; None: nothing to align.
        """

    def after_mix(self, rows: Mapping[str, Tensor], done: int) -> None:
        """Change mixed rows [A, P], given by slice name, after `done` rounds; row by row, or agents would meet."""

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        """Logits [..., B, C] by prediction name."""
