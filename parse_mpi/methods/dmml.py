"""DMML-KD: a generator, shared by all agents, teaches each the common features of every class (method.md 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import DmmlKdMethod
from parse_mpi.methods.base import ALL, Method, SliceSpec, shared
from parse_mpi.methods.dsgd import encoder_slices, label_head_slices
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output


@dataclass(frozen=True)
class DmmlKd(Method):
    """The method of arXiv 2311.06500, as far as it is public."""

    options: DmmlKdMethod

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """Encoders among all holders, label heads among equal sets, the common head and the generator among all."""
        here = [agent for agent in agents if agent.modalities]
        encoders = encoder_slices(agents, roster or agents, "holders")
        return (
            *(replace(spec, balance=self.options.balance) for spec in encoders),
            *label_head_slices(here, self.options.fusion, "set"),
            shared("common_head", ("common_head.",), here, ALL),
            shared("generator", ("generator.",), here, ALL),
        )

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.generator_network import GeneratorNetwork

        return GeneratorNetwork(agent, shapes, class_count, self.options, seed)

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        """The sum of what three parts minimise, each of which feels its own terms alone.

        Encoders and heads their cross-entropies, encoders also the distance from the generator; the generator the same
        distance, and what the common head says of its features.
        """
        import torch

        from parse_mpi.model.distillation import energy_distance, generated_cross_entropy
        from parse_mpi.model.losses import cross_entropy

        common, generated = output.z["common"], output.z["generated"]
        of_head = cross_entropy(output.logits["label"].squeeze(-3), y, mask)
        of_common = cross_entropy(output.logits["common"], y.unsqueeze(-2), mask.unsqueeze(-2)).mean(-1)
        distance = energy_distance(common, generated.detach(), y, mask)
        of_generator = generated_cross_entropy(output.logits["generated"], y, mask)
        of_generator = of_generator + energy_distance(common.detach(), generated, y, mask)
        taught = self.options.common_weight * of_common + self.options.kd_weight * distance
        return torch.stack([of_head + taught + of_generator, of_head, of_common, distance], -1)

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        """What the common head says goes by the name of its counterpart in PARSE."""
        return {"ensemble": output.logits["label"].squeeze(-3), "redundant": output.logits["common"].mean(-3)}

    def shared_latent(self, output: Output) -> Tensor | None:
        return output.z["common"]
