"""PARSE: feature fission, alignment of the redundant slices, slice-level partial sharing (arXiv 2601.10012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parse_mpi.job import ParseMethod
from parse_mpi.methods.base import ALL, MULTIMODAL, SliceSpec
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor

    from parse_mpi.model.network import AgentNetwork, Output


@dataclass(frozen=True)
class Parse:
    """The method of the paper; see docs/method.md for each choice."""

    options: ParseMethod

    def slices(self, agents: Sequence[Agent]) -> tuple[SliceSpec, ...]:
        """Encoders and unique heads over each modality's graph, synergy among multimodal agents, f_r among all."""
        modalities = sorted({m for agent in agents for m in agent.modalities})
        everyone = tuple(agent.id for agent in agents)
        multimodal = tuple(agent.id for agent in agents if len(agent.modalities) > 1)
        table = []
        for m in modalities:
            holders = tuple(agent.id for agent in agents if m in agent.modalities)
            both = tuple(i for i in multimodal if i in set(holders))
            key = module_key(m)
            encoder = (f"encoders.{key}.trunk.", f"encoders.{key}.unique_redundant.")
            table.append(self._slice(f"encoder[{m}]", encoder, holders, m))
            table.append(self._slice(f"unique_head[{m}]", (f"unique_heads.{key}.",), holders, m))
            table.append(
                self._slice(f"synergy[{m}]", (f"encoders.{key}.synergistic.",), both, f"multimodal holders of {m}")
            )
        table.append(self._slice("redundant_head", ("redundant_head.",), everyone, ALL))
        table.append(self._slice("synergy_head", ("synergy_head.",), multimodal, MULTIMODAL))
        return tuple(spec for spec in table if spec.holders)

    def _slice(self, name: str, parameters: tuple[str, ...], holders: tuple[int, ...], graph: str) -> SliceSpec:
        return SliceSpec(name, parameters, holders, graph, groups=(holders,))

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> AgentNetwork:
        from parse_mpi.model.network import AgentNetwork

        return AgentNetwork(agent, shapes, class_count, self.options, seed)

    def alignment_weight(self, kind: tuple[str, ...], agents: Sequence[Agent]) -> float:
        """beta for multimodal agents, 0 for the others (method.md 1.3).

        Only multimodal holders align, so that on a modality's graph beta is diluted to beta * n_multimodal / n_m;
        `beta_scale: holders` divides that out, averaged over the agent's modalities.
        """
        if len(kind) < 2:
            return 0.0
        if self.options.beta_scale == "none":
            return self.options.beta
        holders = [[agent for agent in agents if m in agent.modalities] for m in kind]
        shares = [sum(len(agent.modalities) > 1 for agent in held) / len(held) for held in holders]
        return self.options.beta * sum(1 / share for share in shares) / len(shares)

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: float) -> Tensor:
        import torch

        from parse_mpi.model.heads import average_heads
        from parse_mpi.model.losses import contrastive, cross_entropy

        o = self.options
        ensemble = cross_entropy(average_heads(output.logits, -3, o.ensemble), y, mask)
        each_head = {
            t: cross_entropy(logits, y.unsqueeze(-2), mask.unsqueeze(-2)) for t, logits in output.logits.items()
        }
        heads = average_heads(each_head, -1, o.ensemble)
        total = o.ensemble_weight * ensemble + o.head_weight * heads
        if alignment_weight == 0.0:
            return torch.stack([total, ensemble, heads, torch.zeros_like(total)], -1)
        alignment = contrastive(
            output.z,
            y,
            mask,
            temperature=o.temperature,
            hard_negatives=o.hard_negatives,
            mask_same_label=o.mask_same_label,
        )
        return torch.stack([total + alignment_weight * alignment, ensemble, heads, alignment], -1)

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        from parse_mpi.model.heads import predictions

        return predictions(output.logits, modalities, self.options.ensemble)
