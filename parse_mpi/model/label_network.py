"""Networks without slices: encoders whose whole latent vectors are fused in front of one head (method.md 2).

Shapes as in network.py: M modalities of the agent, B batch, C classes, D latent, the widths of all slices together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from parse_mpi.job import DmmlKdMethod, DsgdMethod, Learner, SheafMethod
from parse_mpi.model.fusion import make_fusion
from parse_mpi.model.initial import fission_encoders, seeded
from parse_mpi.model.names import module_key
from parse_mpi.model.network import Output, make_synergy_head
from parse_mpi.population import Agent


class Encoders(nn.Module):
    """The encoders of an agent, which start as those of PARSE do and are not cut into slices."""

    def __init__(self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], options: Learner, seed: int):
        super().__init__()
        self.modalities = agent.modalities
        self.keys = tuple(module_key(m) for m in agent.modalities)
        self.own = (agent.id,) if options.init == "per-agent" else ()
        self.encoders = fission_encoders(agent, shapes, options.slices, True, seed, self.own)

    def latents(self, x: Mapping[str, Tensor]) -> Tensor:
        """x: modality -> [B, *sample] to the latent vectors [M, B, D]."""
        cut = [self.encoders[key](x[m]) for m, key in zip(self.modalities, self.keys, strict=True)]
        return torch.stack([torch.cat(slices, -1) for slices in cut])

    def share(self, z: Tensor) -> Tensor:
        """What each modality counts in averages over modalities [M]: all the same."""
        return z.new_full((len(self.keys),), 1 / len(self.keys))


class LabelNetwork(Encoders):
    """One head on the fused latent vector. Sub-modules: `encoders.<key>`, `fusion`, `label_head`."""

    def __init__(
        self,
        agent: Agent,
        shapes: Mapping[str, tuple[int, ...]],
        class_count: int,
        options: DsgdMethod | SheafMethod | DmmlKdMethod,
        seed: int,
    ):
        super().__init__(agent, shapes, options, seed)
        widths = options.slices
        with seeded(seed, "fusion", *self.own):
            self.fusion, width = make_fusion(options.fusion, agent.modalities, widths.total)
        with seeded(seed, "label_head", *self.own):
            self.label_head = make_synergy_head(options.label_head, width, widths.synergistic, class_count)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        z = self.latents(x)
        share = self.share(z)
        logits = self.label_head(self.fusion(z, share)).unsqueeze(0)
        return Output({"latent": z}, {}, {"label": logits}, share)
