"""Harmony (Ouyang et al., MobiSys 2023) without its server: unimodal learners first, then fusion in clusters.

docs/method.md, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from parse_mpi.job import HarmonyMethod
from parse_mpi.methods.base import MULTIMODAL, Method, SliceSpec, by_set, equal_sets, private, shared
from parse_mpi.methods.dsgd import encoder_slices
from parse_mpi.model.names import module_key
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parse_mpi.model.network import Output


@dataclass(frozen=True)
class Harmony(Method):
    """second_stage: after so many rounds it begins. fusing: whether it has."""

    options: HarmonyMethod
    second_stage: int
    fusing: bool = False

    def at(self, done: int) -> Harmony:
        return replace(self, fusing=done >= self.second_stage)

    def slices(self, agents: Sequence[Agent], roster: Sequence[Agent] = ()) -> tuple[SliceSpec, ...]:
        """First encoders and unimodal heads mix over each modality's graph; then fusion heads, and nothing else."""
        encoders = list(encoder_slices(agents, roster or agents, "holders"))
        heads = list(self._unimodal_heads(agents))
        if self.fusing:
            pace, anchored = self.options.encoder_pace, self.options.clusters > 1
            encoders = [replace(private(spec), pace=pace, anchored=anchored) for spec in encoders]
            heads = [replace(private(spec), pace=0.0) for spec in heads]
        heads += self._fusion_heads([agent for agent in agents if len(agent.modalities) > 1])
        return tuple(spec for spec in encoders + heads if spec.holders)

    def _unimodal_heads(self, agents: Sequence[Agent]) -> Iterator[SliceSpec]:
        for m in sorted({m for agent in agents for m in agent.modalities}):
            holders = [agent for agent in agents if m in agent.modalities]
            yield shared(f"unique_head[{m}]", (f"unique_heads.{module_key(m)}.",), holders, m, m)

    def _fusion_heads(self, multimodal: Sequence[Agent]) -> Iterator[SliceSpec]:
        """Only agents with equal modality sets share one, whatever its shape: biases of other sets don't compare."""
        parameters = ("label_head.",)
        if self.options.fusion == "mean":
            heads = [by_set(shared("label_head", parameters, multimodal, MULTIMODAL), multimodal)]
        else:
            sets = {members[0].kind: members for members in equal_sets(multimodal)}
            heads = [shared(f"label_head[{kind}]", parameters, sets[kind], f"agents with {kind}") for kind in sets]
        for spec in heads:
            if self.fusing:
                yield replace(spec, every=self.options.sync_every, clusters=self.options.clusters)
            else:
                yield replace(private(spec), pace=0.0)

    def network(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, seed: int) -> nn.Module:
        from parse_mpi.model.harmony_network import HarmonyNetwork

        return HarmonyNetwork(agent, shapes, class_count, self.options, seed)

    def learns(self, kind: tuple[str, ...]) -> bool:
        """Unimodal agents are done after the first stage."""
        return not self.fusing or len(kind) > 1

    def loss(self, output: Output, y: Tensor, mask: Tensor, alignment_weight: Tensor | None) -> Tensor:
        """The sum of what independent unimodal learners minimise, or what a fusion head does once it is trained."""
        import torch

        from parse_mpi.model.losses import cross_entropy

        fused = self._fused(output)
        if fused is None:
            total = cross_entropy(output.logits["unique"], y.unsqueeze(-2), mask.unsqueeze(-2)).sum(-1)
        else:
            total = cross_entropy(fused, y, mask)
        nothing = torch.zeros_like(total)
        of_ensemble, of_heads = (nothing, total) if fused is None else (total, nothing)
        return torch.stack([total, of_ensemble, of_heads, nothing], -1)

    def predictions(self, output: Output, modalities: Sequence[str]) -> dict[str, Tensor]:
        """The fusion head speaks for a multimodal agent once it is trained, until then the mean of unimodal logits."""
        unique, fused = output.logits["unique"], self._fused(output)
        of_one = {f"unique[{m}]": unique[..., k, :, :] for k, m in enumerate(modalities)}
        return {"ensemble": unique.mean(-3) if fused is None else fused, **of_one}

    def _fused(self, output: Output) -> Tensor | None:
        """Logits [..., B, C] of the fusion head; None before it is trained, and of unimodal agents."""
        return output.logits["label"].squeeze(-3) if self.fusing and "label" in output.logits else None

    def shared_latent(self, output: Output) -> Tensor | None:
        return output.z["latent"]
