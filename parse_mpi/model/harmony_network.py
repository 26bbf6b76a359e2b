"""Harmony's network: a head on each modality's latent vector, and one on all of them (docs/method.md, section 3).

Shapes as in network.py: M modalities of the agent, B batch, C classes, D latent, the widths of all slices together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from parse_mpi.job import HarmonyMethod
from parse_mpi.model.fusion import make_fusion
from parse_mpi.model.initial import seeded
from parse_mpi.model.label_network import Encoders
from parse_mpi.model.network import Output, make_synergy_head
from parse_mpi.population import Agent


class HarmonyNetwork(Encoders):
    """Sub-modules: `encoders.<key>`, `unique_heads.<key>`, and of multimodal agents `fusion`, `label_head`."""

    def __init__(
        self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, options: HarmonyMethod, seed: int
    ):
        super().__init__(agent, shapes, options, seed)
        widths = options.slices
        self.unique_heads = nn.ModuleDict()
        for m, key in zip(agent.modalities, self.keys, strict=True):
            with seeded(seed, f"unique_head[{m}]", *self.own):
                self.unique_heads[key] = nn.Linear(widths.total, class_count)
        self.fusion: nn.Module | None = None
        self.label_head: nn.Module | None = None
        if len(agent.modalities) > 1:
            self.fusion, width = make_fusion(options.fusion, agent.modalities, widths.total)
            with seeded(seed, "label_head", *self.own):
                self.label_head = make_synergy_head(options.label_head, width, widths.synergistic, class_count)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]; logits of the type `unique`, and `label` of multimodal agents."""
        z = self.latents(x)
        share = self.share(z)
        of_one = zip(self.keys, z.unbind(0), strict=True)
        logits = {"unique": torch.stack([self.unique_heads[key](z_BD) for key, z_BD in of_one])}
        if self.fusion is not None and self.label_head is not None:
            logits["label"] = self.label_head(self.fusion(z, share)).unsqueeze(0)
        return Output({"latent": z}, {}, logits, share)
