"""FedEPA: encoders take of a mean what helps their agent, and modalities align without labels (method.md 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import FedepaMethod, LearntWeights
from parse_mpi.methods.base import SliceSpec, equal_sets, shared
from parse_mpi.methods.dsgd import OneHead, encoder_slices
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output


@dataclass(frozen=True)
class Fedepa(OneHead):
    """The method of arXiv 2504.12025 without its server. start: rounds after which the era began that this is of."""

    options: FedepaMethod
    start: int = 0

    def at(self, done: int) -> Fedepa:
        return replace(self, start=done)

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """Encoders among all holders; fusion and classifier, which know modalities, among equal sets."""
        personal = self.weights != 1.0
        encoders = encoder_slices(agents, roster or agents, "holders")
        table = [replace(spec, personal=personal) for spec in encoders]
        for members in equal_sets([agent for agent in agents if agent.modalities]):
            kind = members[0].kind
            table.append(shared(f"label_head[{kind}]", ("fusion.", "label_head."), members, f"agents with {kind}"))
        return tuple(table)

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.token_network import TokenNetwork

        return TokenNetwork(agent, shapes, class_count, self.options, seed)

    @property
    def weights(self) -> LearntWeights | float:
        return self.options.weights

    def alignment_weight(self, kind: tuple[str, ...], agents: Sequence[Agent]) -> float:
        """The same for all that have a pair of modalities to align."""
        return self.options.alignment if len(kind) > 1 else 0.0

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        import torch

        from parse_mpi.model.losses import cross_entropy
        from parse_mpi.model.token_losses import alignment

        total = of_head = cross_entropy(output.logits["label"].squeeze(-3), y, mask)
        aligned = torch.zeros_like(total)
        if alignment_weight is not None:
            o = self.options
            aligned = alignment(
                output.z["aligned"],
                output.z["context"],
                y,
                mask,
                temperature=o.temperature,
                independence=o.independence,
                context_weight=o.context,
            )
            total = total + alignment_weight * aligned
        return torch.stack([total, of_head, torch.zeros_like(total), aligned], -1)

    def shared_latent(self, output: Output) -> Tensor | None:
        return output.z["aligned"]

    def gradient_steps(self, rounds: int, local_steps: int) -> int:
        """Local steps, and as many weight steps as the first phase may have at most."""
        steps = super().gradient_steps(rounds, local_steps)
        if isinstance(self.weights, LearntWeights):
            steps += self.weights.most_steps(self.start + rounds) - self.weights.most_steps(self.start)
        return steps
