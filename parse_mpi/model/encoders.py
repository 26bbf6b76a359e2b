"""Encoders: one sample of one modality to its latent slices.

A trunk has no BatchNorm: its running statistics are no parameters, so they would neither mix nor be checkpointed.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from parse_mpi.job import Encoder


class MlpTrunk(nn.Sequential):
    """Flatten, then Linear, LayerNorm and ReLU per hidden width: [B, *sample] to [B, width].

    Without the norm the largest stable learning rate falls with the number of input features.
    """

    def __init__(self, sample_shape: tuple[int, ...], hidden: tuple[int, ...]):
        widths = [math.prod(sample_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.LayerNorm(width_out), nn.ReLU()]
        super().__init__(*layers)
        self.width = widths[-1]


def make_trunk(encoder: Encoder, sample_shape: tuple[int, ...]) -> MlpTrunk:
    """The trunk that the job asks for, for samples of this shape."""
    return MlpTrunk(sample_shape, encoder.hidden)


class FissionEncoder(nn.Module):
    """A trunk and a last layer that is cut into the latent slices u, r and s (feature fission, method.md 1.2).

    The last layer is kept as two linear maps, because its synergistic rows have a scope of their own: unimodal
    agents have none. Together the two equal one linear layer followed by `torch.split`.
    """

    def __init__(self, trunk: nn.Module, unique_redundant: nn.Linear, unique: int, synergistic: nn.Linear | None):
        super().__init__()
        self.trunk = trunk
        self.unique_redundant = unique_redundant
        self.synergistic = synergistic
        self.unique = unique

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [B, *sample] to (z_u [B, d_u], z_r [B, d_r], z_s [B, d_s] or None)."""
        h = self.trunk(x)
        z_u, z_r = self.unique_redundant(h).tensor_split((self.unique,), dim=-1)
        return z_u, z_r, self.synergistic(h) if self.synergistic is not None else None
