"""Fusion: the synergistic slices of an agent's modalities become the input of its synergy head (method.md 1.2).

Shapes: M modalities of the agent, B batch, D slice width. share_M: what each modality counts, positive with sum 1.
`mean`, `gated` and `attention` work for any set of modalities and start as the mean weighted by `share_M`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parse_mpi.model.names import module_key


class MeanFusion(nn.Module):
    """The mean of the slices; without parameters."""

    def forward(self, z_MBD: Tensor, share_M: Tensor) -> Tensor:
        """[M, B, D] to [B, D]."""
        return weighted_mean(z_MBD, share_M)


class GatedFusion(nn.Module):
    """A gate per modality and latent position: a linear map of that modality's slice, softmax over the modalities.

    A modality's gate reads its own slice only, so that it means the same beside whatever other modalities.
    """

    def __init__(self, modalities: Sequence[str], width: int):
        super().__init__()
        self.gates = nn.ModuleDict({module_key(m): zero_linear(width) for m in modalities})

    def forward(self, z_MBD: Tensor, share_M: Tensor) -> Tensor:
        """[M, B, D] to [B, D]."""
        score_MBD = torch.stack([gate(z_BD) for gate, z_BD in zip(self.gates.values(), z_MBD.unbind(0), strict=True)])
        gate_MBD = (score_MBD + share_M.log()[:, None, None]).softmax(0)
        return (gate_MBD * z_MBD).sum(0)


class AttentionFusion(nn.Module):
    """One self-attention layer over the modalities with a residual connection, then the mean.

    All maps are shared by the modalities. The last one starts at zero, so that the layer starts as the identity.
    """

    def __init__(self, width: int):
        super().__init__()
        self.attention = nn.ModuleDict(
            {
                "query": nn.Linear(width, width, bias=False),
                "key": nn.Linear(width, width, bias=False),
                "value": nn.Linear(width, width, bias=False),
                "output": zero_linear(width),
            }
        )

    def forward(self, z_MBD: Tensor, share_M: Tensor) -> Tensor:
        """[M, B, D] to [B, D]."""
        query, key, value = (self._mapped(name, z_MBD).transpose(0, 1) for name in ("query", "key", "value"))
        score_BMM = query @ key.transpose(-1, -2) / math.sqrt(z_MBD.shape[-1])
        seen_BMD = (score_BMM + share_M.log()).softmax(-1) @ value
        return weighted_mean(z_MBD + self._mapped("output", seen_BMD.transpose(0, 1)), share_M)

    def _mapped(self, name: str, z_MBD: Tensor) -> Tensor:
        """A map of all vectors as one matrix: for stacked agents torch would otherwise copy it for every sample."""
        mapped: Tensor = self.attention[name](z_MBD.flatten(0, 1))
        return mapped.reshape(z_MBD.shape)


class ConcatFusion(nn.Module):
    """The slices side by side; the synergy head then weighs them, and belongs to one set of modalities."""

    def forward(self, z_MBD: Tensor, share_M: Tensor) -> Tensor:
        """[M, B, D] to [B, M * D]."""
        return z_MBD.transpose(0, 1).flatten(1)


def make_fusion(kind: str, modalities: Sequence[str], width: int) -> tuple[nn.Module, int]:
    """The fusion that the job names, and the width of what it gives."""
    if kind == "concat":
        return ConcatFusion(), len(modalities) * width
    if kind == "gated":
        return GatedFusion(modalities, width), width
    return (AttentionFusion(width) if kind == "attention" else MeanFusion()), width


def weighted_mean(z_MBD: Tensor, share_M: Tensor) -> Tensor:
    """[M, B, D] to [B, D]."""
    return (share_M[:, None, None] * z_MBD).sum(0)


def zero_linear(width: int) -> nn.Linear:
    """A square linear layer at zero."""
    layer = nn.Linear(width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
