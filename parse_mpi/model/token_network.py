"""The network of FedEPA: latent vectors in two parts, and attention over the parts of all modalities (method.md 4).

Shapes as in network.py: M modalities of the agent, B batch, C classes; W width of a token, T = 2 M tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from parse_mpi.job import FedepaMethod
from parse_mpi.model.fusion import AttentionFusion, MeanFusion
from parse_mpi.model.initial import seeded
from parse_mpi.model.label_network import Encoders
from parse_mpi.model.names import module_key
from parse_mpi.model.network import Output
from parse_mpi.population import Agent

TYPE_SCALE = 0.02  # standard deviation of type embeddings at the start


class TokenFusion(nn.Module):
    """One self-attention layer over tokens that carry an embedding of their type, with a residual, then the mean."""

    def __init__(self, modalities: Sequence[str], width: int):
        super().__init__()
        self.keys = tuple(module_key(m) for m in modalities)
        self.types = nn.ParameterDict({key: nn.Parameter(TYPE_SCALE * torch.randn(2, width)) for key in self.keys})
        self.pool = AttentionFusion(width)

    def forward(self, token_TBW: Tensor, share_T: Tensor) -> Tensor:
        """[T, B, W] to [B, W]."""
        type_TW = torch.cat([self.types[key] for key in self.keys])  # a ParameterDict sorts
        fused: Tensor = self.pool(token_TBW + type_TW[:, None], share_T)
        return fused


class TokenNetwork(Encoders):
    """Tokens {aligned, context} of every modality, fused into a linear head.

    Sub-modules: `encoders.<key>`, `fusion`, `label_head`. The narrower part of a latent vector is padded with zeros.
    """

    def __init__(
        self, agent: Agent, shapes: Mapping[str, tuple[int, ...]], class_count: int, options: FedepaMethod, seed: int
    ):
        super().__init__(agent, shapes, options, seed)
        self.aligned_width = options.aligned_width
        self.width = max(options.aligned_width, options.slices.total - options.aligned_width)
        with seeded(seed, f"fusion[{agent.kind}]", *self.own):
            attention = options.fusion == "attention"
            self.fusion = TokenFusion(agent.modalities, self.width) if attention else MeanFusion()
        with seeded(seed, "label_head", *self.own):
            self.label_head = nn.Linear(self.width, class_count)

    def forward(self, x: Mapping[str, Tensor]) -> Output:
        """x: modality -> [B, *sample]."""
        z = self.latents(x)
        aligned, context = parts = z[..., : self.aligned_width], z[..., self.aligned_width :]
        token_TBW = torch.stack([pad(part, (0, self.width - part.shape[-1])) for part in parts], 1).flatten(0, 1)
        share_T = token_TBW.new_full((len(token_TBW),), 1 / len(token_TBW))
        logits = self.label_head(self.fusion(token_TBW, share_T)).unsqueeze(0)
        return Output({"aligned": aligned, "context": context}, {}, {"label": logits}, self.share(z))
