"""Engines: how the local agents' forward and backward passes are run.

`loop` takes one agent after another, the reference and the only engine of mode `exact`, because its bits do not
depend on who else is on the rank. `stacked` runs agents of one blueprint together by `torch.vmap` over row views.

Shapes: A agents of a unit (absent in the loop engine), B batch, C classes, T loss terms.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from parse_mpi.agents.rows import SliceRows
from parse_mpi.agents.samples import AgentSamples
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.model.network import Output
from parse_mpi.plan import Plan
from parse_mpi.population import Agent

STACK = 32  # agents of one blueprint that run together: bounds the memory of activations; larger stacks gain nothing

# Gradients are views of the gradient rows, so a stacked leaf's strides differ from what autograd would allocate.
# It accumulates into them correctly; only its advice about speed does not apply.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


@dataclass(frozen=True)
class Unit:
    """Agents of one kind that run as one: their network, and leaves that view their rows.

    index: local agent indices, int64 [A] on the device (stacked) or [] on the CPU (loop: read without waiting).
    """

    modalities: tuple[str, ...]
    network: nn.Module
    parameters: Mapping[str, Tensor]
    index: Tensor
    alignment_weight: float


class Engine(ABC):
    """Runs the local agents' networks; subclasses say what a unit is and how it is called."""

    def __init__(self, plan: Plan, agents: list[Agent], slices: Mapping[str, SliceRows], device: torch.device):
        self.plan = plan
        self.agents = agents
        self.device = device
        self.dtype = getattr(torch, plan.job.dtype)
        self.units = [self._unit(slices, group) for group in self._groups()]

    def gradients(self, samples: AgentSamples, position: Tensor, mask: Tensor) -> Tensor:
        """One backward pass for every agent into the gradient rows; returns loss terms [A, T], detached.

        position int64 [A, B] and mask bool [A, B]: the batch of each local agent.
        """
        losses = torch.empty(len(self.agents), len(LOSS_TERMS), dtype=self.dtype, device=self.device)
        for unit in self.units:
            p, m = self._batch(position[unit.index], mask[unit.index])
            x, y = samples.gather(unit.index, unit.modalities, p)
            output = self._forward(unit, x, shared=False)
            terms = self.plan.method.loss(output, y, m.to(self.dtype), unit.alignment_weight)
            torch.autograd.backward(terms[..., 0].sum())
            losses[unit.index] = terms.detach()
        return losses

    @torch.no_grad()
    def predict(self, unit: Unit, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits [(A,) n, C] by prediction name, every agent of the unit on the same samples x [n, *sample]."""
        output = self._forward(unit, {m: x[m] for m in unit.modalities}, shared=True)
        return self.plan.method.predictions(output, unit.modalities)

    @abstractmethod
    def _groups(self) -> Iterator[list[int]]:
        """Local agent indices of each unit: one blueprint, consecutive."""

    @abstractmethod
    def _unit(self, slices: Mapping[str, SliceRows], group: list[int]) -> Unit:
        """Leaves and network of one unit."""

    @abstractmethod
    def _forward(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> Output:
        """Call the network; `shared` samples are the same for all agents of the unit."""

    @abstractmethod
    def _batch(self, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The batch as the engine wants it: cut to the true samples, or padded and masked."""

    def _make(self, slices: Mapping[str, SliceRows], group: list[int], one: bool) -> Unit:
        first = self.agents[group[0]]
        parameters: dict[str, Tensor] = {}
        for rows in slices.values():
            held = rows.agents.tolist()
            if first.id in held:
                start = held.index(first.id)
                parameters |= rows.parameters(start if one else slice(start, start + len(group)))
        with torch.device("meta"):
            skeleton = self.plan.network(first, seed=0)
        return Unit(
            modalities=first.modalities,
            network=skeleton,
            parameters=parameters,
            index=torch.tensor(group[0]) if one else torch.tensor(group, device=self.device),
            alignment_weight=self.plan.method.alignment_weight(first.modalities, self.plan.agents),
        )


class LoopEngine(Engine):
    """One agent after another, each on its true batch."""

    def _groups(self) -> Iterator[list[int]]:
        return iter([k] for k in range(len(self.agents)))

    def _unit(self, slices: Mapping[str, SliceRows], group: list[int]) -> Unit:
        return self._make(slices, group, one=True)

    def _forward(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> Output:
        output: Output = functional_call(unit.network, dict(unit.parameters), (x,))
        return output

    def _batch(self, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return position[mask], mask[mask]


class StackedEngine(Engine):
    """Up to STACK agents of one blueprint at a time, padded batches with masks."""

    def _groups(self) -> Iterator[list[int]]:
        models = [agent.blueprint for agent in self.agents]
        start = 0
        for stop in range(1, len(models) + 1):
            if stop == len(models) or models[stop] != models[start] or stop - start == STACK:
                yield list(range(start, stop))
                start = stop

    def _unit(self, slices: Mapping[str, SliceRows], group: list[int]) -> Unit:
        return self._make(slices, group, one=False)

    def _forward(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> Output:
        def call(parameters: dict[str, Tensor], x: dict[str, Tensor]) -> Output:
            output: Output = functional_call(unit.network, parameters, (x,))
            return output

        output: Output = torch.vmap(call, in_dims=(0, None if shared else 0))(dict(unit.parameters), x)
        return output

    def _batch(self, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return position, mask
