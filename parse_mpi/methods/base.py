"""What a method is made of: agents, slices, and the questions that the rest asks it.

Light commands import this, so that no module of methods/ may import torch at its top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import Learner, LearntWeights
from parse_mpi.job.dmml import Balance
from parse_mpi.job.method import BetaSchedule, ConstantBeta, Scope
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output

# Names of graphs that are no modality's: a modality's name has no space, so that none can be mistaken for another.
ALL, MULTIMODAL = "all agents", "multimodal agents"
LOSS_TERMS = ("total", "ensemble", "heads", "contrastive")


@dataclass(frozen=True)
class Coupling:
    """Ties slices of different sizes together, by maps from each of them to so many numbers (exchange/sheaf.py).

    among: agents that each hold one such slice, ascending. graph: the name of the graph among them.
    width: numbers that travel over a link. rate: length of the step that closes the gap by moving the slice; map_rate:
    of the one that moves the map.
    """

    among: tuple[int, ...]
    graph: str
    width: int
    rate: float
    map_rate: float


@dataclass(frozen=True)
class SliceSpec:
    """A named block of parameters, who holds it and among whom it mixes (method.md 1.4).

    parameters: prefixes of the network's parameter names. holders: agent ids, ascending.
    groups: disjoint groups of holders; agents mix this slice inside their group only, and not at all without one.
    graph: the name of the graph that it mixes over; slices with equal groups share one.
    modality: whose graph that is, "" where it is no single modality's.
    every: it mixes in every round whose number, counted from 1, this divides.
    rate: it takes plain gradient steps of this length, whatever the job's optimiser is; None: it takes that one's.
    pace: factor on the learning rate of the job's optimiser; 0: it is not trained.
    anchored: the row as it was when the method's stage began is remembered beside it, as its state `reference`.
    clusters: above 1, holders whose anchored slices have turned alike mix among themselves alone, in up to so many
    clusters inside each group, found anew in every round in which the slice mixes (exchange/clustered.py); so do all
    slices with these groups.
    personal: an agent takes of its neighbours' mean what the method's weights say, and not the whole of it.
    camps: two sets of holders whose updates travel apart and are reconciled where they conflict (agents/surgery.py);
    empty: all holders are alike.
    balance: agents leave out steps of those of their balanced slices that change faster than the others.
    coupling: ties it to what other agents hold in its place.
    """

    name: str
    parameters: tuple[str, ...]
    holders: tuple[int, ...]
    graph: str
    groups: tuple[tuple[int, ...], ...]
    modality: str = ""
    every: int = 1
    rate: float | None = None
    pace: float = 1.0
    anchored: bool = False
    clusters: int = 1
    personal: bool = False
    camps: tuple[tuple[int, ...], ...] = ()
    balance: Balance | None = None
    coupling: Coupling | None = None


@dataclass(frozen=True)
class Method(ABC):
    """A way to learn: which slices there are, and what an agent minimises and predicts."""

    options: Learner

    def at(self, done: int) -> Method:
        """The method as it is after so many rounds; another one for each of `options.stages`."""
        return self

    @abstractmethod
    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """The slice table; every parameter of every agent's network lies in exactly one slice.

        roster: every agent as it ever is, in whose order families are named; without it, `agents`.
        """

    def problems(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> list[str]:
        """What is wrong with the method's options for these agents, worded for the user; roster as for `slices`."""
        return []

    @abstractmethod
    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        """A plain module for an agent of this blueprint, at its initial values; shapes: modality -> sample shape.

        It gives an `Output`.
        """

    @property
    def common_start(self) -> bool:
        """Whether agents of one blueprint have the same initial values."""
        return self.options.init == "common"

    @property
    def schedule(self) -> BetaSchedule:
        """How the weight of the alignment term goes over the rounds."""
        return ConstantBeta(kind="constant")

    @property
    def weights(self) -> LearntWeights | float:
        """What an agent takes of its neighbours' mean of slices that are `personal`."""
        return 1.0

    def alignment_weight(self, kind: tuple[str, ...], agents: Sequence[Agent]) -> float:
        """The factor in front of the alignment term for agents that hold `kind`, before the schedule."""
        return 0.0

    @abstractmethod
    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        """Loss terms [..., T] in the order of LOSS_TERMS; the first is what the gradient is taken of.

        y < 0: the sample has no label. mask [..., B]: 0 for padding. alignment_weight [...]; None: nothing to align.
        """

    def learns(self, kind: tuple[str, ...]) -> bool:
        """Whether agents that hold `kind` take gradient steps; the slices of others change by mixing alone."""
        return True

    def after_mix(self, rows: Mapping[str, Tensor], done: int) -> None:  # noqa: B027 (most have nothing to do here)
        """Change mixed rows [A, P], given by slice name, after `done` rounds; row by row, or agents would meet."""

    @abstractmethod
    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        """Logits [..., B, C] by prediction name."""

    def shared_latent(self, output: Output) -> Tensor | None:
        """The latent vectors that ought to be alike across modalities [..., M, B, d]; None where there are none."""
        return None

    def gradient_steps(self, rounds: int, local_steps: int) -> int:
        """Gradient steps that an agent which learns takes in so many rounds, for comparisons of equal budgets."""
        return rounds * local_steps


def shared(
    name: str, parameters: tuple[str, ...], holders: Sequence[Agent], graph: str, modality: str = ""
) -> SliceSpec:
    """A slice that mixes among all its holders."""
    return SliceSpec(name, parameters, ids_of(holders), graph, (ids_of(holders),), modality)


def private(spec: SliceSpec) -> SliceSpec:
    """The same slice, which never leaves its agents."""
    return replace(spec, graph="", groups=())


def by_set(spec: SliceSpec, holders: Sequence[Agent]) -> SliceSpec:
    """The same slice, which agents mix with those that hold the same modalities."""
    return replace(spec, graph=f"{spec.graph}, by set", groups=tuple(map(ids_of, equal_sets(holders))))


def scoped(spec: SliceSpec, scope: Scope, holders: Sequence[Agent]) -> SliceSpec:
    """The same slice, mixed in another scope than among all its holders."""
    if scope == "none":
        return private(spec)
    return by_set(spec, holders) if scope == "set" else spec


def ids_of(agents: Sequence[Agent]) -> tuple[int, ...]:
    return tuple(agent.id for agent in agents)


def equal_sets(agents: Sequence[Agent]) -> list[list[Agent]]:
    """Agents with equal modality sets together, in order of appearance."""
    kinds = dict.fromkeys(agent.modalities for agent in agents)
    return [[agent for agent in agents if agent.modalities == kind] for kind in kinds]
