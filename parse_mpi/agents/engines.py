"""Engines: how the local agents' forward and backward passes are run.

`loop` takes one agent after another, the reference and the only engine of mode `exact`, because its bits do not
depend on who else is on the rank. `stacked` runs agents of one blueprint together by `torch.vmap` over row views.

Shapes: A agents of a unit (absent in the loop engine), B batch, C classes, T loss terms.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

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
# Values that one layer gives for one sample of every agent of a stack: 16 MiB for the 256 samples that are evaluated at
# a time. Beyond, a CPU waits for memory, and one agent after another is faster.
WIDEST_LAYER = 1 << 14

# Gradients are views of the gradient rows, so a stacked leaf's strides differ from what autograd would allocate.
# It accumulates into them correctly; only its advice about speed does not apply.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")


@dataclass(frozen=True)
class Unit:
    """Agents of one kind that run as one: the skeleton of their network, and leaves that view their rows.

    index: local agent indices, int64 [A] on the device (stacked) or [] on the CPU (loop: read without waiting).
    aligns: whether their loss has an alignment term.
    """

    modalities: tuple[str, ...]
    network: nn.Module
    parameters: Mapping[str, Tensor]
    index: Tensor
    aligns: bool


def stack_size(plan: Plan, agent: Agent, device: torch.device) -> int:
    """How many agents of this one's blueprint run together in the stacked engine."""
    if device.type != "cpu":
        return STACK
    return max(1, min(STACK, WIDEST_LAYER // max(plan.layer_sizes[agent.blueprint])))


class Engine(ABC):
    """Runs the local agents' networks; subclasses say what a unit is and how it is called."""

    def __init__(self, plan: Plan, agents: list[Agent], slices: Mapping[str, SliceRows], device: torch.device):
        self.plan = plan
        self.agents = agents
        self.device = device
        self.dtype = getattr(torch, plan.job.dtype)
        self.units = [self._unit(slices, group) for group in self._groups()]

    def gradients(
        self, samples: AgentSamples, position: Tensor, mask: Tensor, weights: Tensor | None, poll: Callable[[], None]
    ) -> Tensor:
        """One backward pass for every agent that learns into the gradient rows; loss terms [A, T], detached, else nan.

        position int64 [A, B] and mask bool [A, B]: the batch of each local agent. weights [A]: of its alignment term;
        None: without that term.
        poll: called after each unit, for whatever has to go on meanwhile.
        """
        losses = torch.full((len(self.agents), len(LOSS_TERMS)), torch.nan, dtype=self.dtype, device=self.device)
        for unit in self.units:
            if not self.plan.method.learns(unit.modalities):
                continue
            terms = self._losses(unit, samples, position, mask, weights)
            torch.autograd.backward(terms[..., 0].sum())
            losses[unit.index] = terms.detach()
            poll()
        return losses

    def gradient_norms(self, samples: AgentSamples, position: Tensor, mask: Tensor) -> Tensor:
        """Norms over an agent's encoders of the gradients of its L_cls and its L_con, [A, 2]; 0 where none is aligned.

        Two backward passes on the batch that position and mask [A, B] choose, which leave the gradient rows alone.
        """
        norms = torch.zeros(len(self.agents), 2, dtype=self.dtype, device=self.device)
        unweighted = torch.zeros(len(self.agents), dtype=self.dtype, device=self.device)
        for unit in self.units:
            if not unit.aligns:
                continue
            terms = self._losses(unit, samples, position, mask, unweighted)
            encoders = [leaf for name, leaf in unit.parameters.items() if name.startswith("encoders.")]
            for column, term in enumerate(("total", "contrastive")):  # without a weight the total is L_cls
                loss = terms[..., LOSS_TERMS.index(term)].sum()
                found = torch.autograd.grad(loss, encoders, retain_graph=term == "total", materialize_grads=True)
                squares = [g.square().reshape(*unit.index.shape, -1).sum(-1) for g in found]
                norms[unit.index, column] = torch.stack(squares).sum(0).sqrt()
        return norms

    @torch.no_grad()
    def predict(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> dict[str, Tensor]:
        """Logits [(A,) n, C] by prediction name; agents of the unit share samples x [n, *sample] or have their own."""
        output = self._forward(unit, x, shared)
        return self.plan.method.predictions(output, unit.modalities)

    @torch.no_grad()
    def latent(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> Tensor | None:
        """What ought to be alike across the unit's modalities, [(A,) M, n, d], of samples as for `predict`."""
        return self.plan.method.shared_latent(self._forward(unit, x, shared))

    def _losses(
        self, unit: Unit, samples: AgentSamples, position: Tensor, mask: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Loss terms [(A,) T] of a unit's agents on their batches."""
        p, m = self._batch(position[unit.index], mask[unit.index])
        x, y = samples.gather(unit.index, unit.modalities, p)
        output = self._forward(unit, x, shared=False)
        weight = weights[unit.index] if unit.aligns and weights is not None else None
        return self.plan.method.loss(output, y, m.to(self.dtype), weight)

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
        return Unit(
            modalities=first.modalities,
            network=self.plan.skeletons[first.blueprint],
            parameters=parameters,
            index=torch.tensor(group[0]) if one else torch.tensor(group, device=self.device),
            aligns=self.plan.alignment_weights[first.modalities] > 0,
        )


class LoopEngine(Engine):
    """One agent after another, each on its true batch."""

    def _groups(self) -> Iterator[list[int]]:
        return iter([k] for k in range(len(self.agents)))

    def _unit(self, slices: Mapping[str, SliceRows], group: list[int]) -> Unit:
        return self._make(slices, group, one=True)

    def _forward(self, unit: Unit, x: dict[str, Tensor], shared: bool) -> Output:
        # Copies, as a row stands where the number of rows before it says, and the last bits of a product of matrices
        # may depend on how they lie in memory; new tensors all begin at a boundary of 64 bytes.
        parameters = {name: leaf.clone() for name, leaf in unit.parameters.items()}
        output: Output = functional_call(unit.network, parameters, (x,))
        return output

    def _batch(self, position: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return position[mask], mask[mask]


class StackedEngine(Engine):
    """Agents of one blueprint together, as many as `stack_size` says, padded batches with masks."""

    def _groups(self) -> Iterator[list[int]]:
        for _, group in groupby(range(len(self.agents)), key=lambda k: self.agents[k].blueprint):
            alike = list(group)
            size = stack_size(self.plan, self.agents[alike[0]], self.device)
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

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
