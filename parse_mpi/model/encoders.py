"""Encoders: one sample of one modality to its latent slices."""

from __future__ import annotations

from torch import Tensor, nn

from parse_mpi.job import Conv1dEncoder, Conv2dEncoder, Encoder, MlpEncoder, OwnEncoder
from parse_mpi.model.own import OwnTrunk
from parse_mpi.model.shapes import Shape, chosen_encoder
from parse_mpi.model.trunks import ImageTrunk, MlpTrunk, SeriesTrunk, Trunk


def make_trunk(encoder: Encoder, shape: Shape) -> Trunk:
    """The trunk that the job asks for, for samples of this shape. Raises EncoderError where an own one is none."""
    chosen = chosen_encoder(encoder, shape)
    if isinstance(chosen, Conv1dEncoder):
        return SeriesTrunk(chosen, shape)
    if isinstance(chosen, Conv2dEncoder):
        return ImageTrunk(chosen, shape)
    if isinstance(chosen, OwnEncoder):
        return OwnTrunk(chosen, shape)
    assert isinstance(chosen, MlpEncoder)
    return MlpTrunk(shape, chosen.hidden)


class FissionEncoder(nn.Module):
    """A trunk and a last layer that is cut into the latent slices u, r and s (feature fission, method.md 1.2).

    It is cut after `unique` values, or by masks that share one set of positions out.

    The last layer is kept as two linear maps, because its synergistic rows have a scope of their own: unimodal
    agents have none. Together the two equal one linear layer followed by `torch.split`.
    """

    def __init__(self, trunk: nn.Module, unique_redundant: nn.Linear, unique: int, synergistic: nn.Linear | None):
        super().__init__()
        self.trunk = trunk
        self.unique_redundant = unique_redundant
        self.synergistic = synergistic
        self.unique = unique

    def forward(self, x: Tensor, mask_3D: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [B, *sample] to (z_u [B, d_u], z_r [B, d_r], z_s [B, d_s] or None); with masks all are [B, D]."""
        h = self.trunk(x)
        z_ur, z_s = self.unique_redundant(h), self.synergistic(h) if self.synergistic is not None else None
        if mask_3D is None:
            z_u, z_r = z_ur.tensor_split((self.unique,), dim=-1)
            return z_u, z_r, z_s
        return mask_3D[0] * z_ur, mask_3D[1] * z_ur, mask_3D[2] * z_s if z_s is not None else None
