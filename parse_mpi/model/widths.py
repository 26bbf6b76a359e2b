"""Adaptive slice widths: who gets which of a modality's latent positions (method.md 1.2, 1.3).

Shapes: D latent positions, M modalities of the agent, B batch, C classes, A agents; `...` is nothing or the agents. A
last axis of 3 is (unique, redundant, synergistic).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parse_mpi.model.heads import SLICE_TYPES, ensemble
from parse_mpi.model.losses import cross_entropy

ADDITIVE = (("unique",), ("redundant",), ("unique", "redundant"))  # predictions that know nothing of synergy


class SoftWidths(nn.Module):
    """Three logits, whose softmax shares D positions out: redundant ones first, then unique, then synergistic ones.

    Heads of all modalities read the redundant positions, and fusion the synergistic ones. So these begin at one end
    and end at the other, and stay comparable where modalities have other widths.
    """

    def __init__(self, total: int):
        super().__init__()
        self.total = total
        self.logits = nn.Parameter(torch.tensor(harden(np.zeros(3), total), dtype=torch.get_default_dtype()))

    def forward(self) -> Tensor:
        """Masks [3, D] that add up to 1 everywhere and to D p each; at most one position a boundary is shared.

        They pass no gradient: moving a boundary by a little changes no loss, as the next layer rescales the position.
        """
        unique, redundant, _ = (self.total * self.logits.detach().softmax(-1)).unbind(-1)
        position = torch.arange(self.total, device=unique.device)
        first = (redundant - position).clamp(0, 1)
        second = (redundant + unique - position).clamp(0, 1)
        return torch.stack([second - first, first, 1 - second])


def width_loss(
    width_logits: tuple[Tensor, ...],
    logits: Mapping[str, Tensor],
    share_M: Tensor,
    y_B: Tensor,
    mask_B: Tensor,
    *,
    penalty: float,
    how: str,
) -> Tensor:
    """How far the shares p of a modality are from its demand d: sum over modalities of w KL(q || p), [...].

    w = sum(d + penalty), q = (d + penalty) / w. A batch without labels has no demand, and 0.
    """
    wanted = demand(logits, share_M, y_B, mask_B, how) + penalty
    log_p = torch.stack(width_logits, -2).log_softmax(-1)
    distance = (wanted * ((wanted / wanted.sum(-1, keepdim=True)).log() - log_p)).sum((-1, -2))
    return distance * (mask_B * (y_B >= 0)).amax(-1)


@torch.no_grad()
def demand(logits: Mapping[str, Tensor], share_M: Tensor, y_B: Tensor, mask_B: Tensor, how: str) -> Tensor:
    """What the slices of each modality tell about the label, as shares of log C: [..., M, 3], none below 0.

    logits: slice type -> [..., H, B, C] of a multimodal agent. how: as for `heads.ensemble`.
    """

    def left(logits_BC: Tensor, y_B: Tensor, mask_B: Tensor) -> Tensor:
        return cross_entropy(logits_BC, y_B, mask_B) / math.log(max(2, logits_BC.shape[-1]))

    def left_by(types: Sequence[str]) -> Tensor:
        return left(ensemble({t: logits[t] for t in types}, share_M, how), y_B, mask_B)

    additive = torch.stack([left_by(types) for types in ADDITIVE]).amin(0)
    best = torch.stack([left_by(SLICE_TYPES), left_by(("synergistic",)), additive]).amin(0)
    alone = logits["unique"]
    others = (alone.sum(-3, keepdim=True) - alone) / (alone.shape[-3] - 1)
    left_alone, left_by_others = (left(heads, y_B.unsqueeze(-2), mask_B.unsqueeze(-2)) for heads in (alone, others))
    u = (left_by_others - additive.unsqueeze(-1)).clamp(min=0)
    r = (1 - left_alone - u).clamp(min=0)
    s = (additive * (1 - best).clamp(min=0)).unsqueeze(-1).expand_as(u)
    return torch.stack([u, r, s], -1)


def widths_of(logits: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """Positions of each slice: logits [..., 3] to [..., 3], sum `total`."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    widths: NDArray[np.float64] = total * powers / powers.sum(-1, keepdims=True)
    return widths


def harden(logits: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """The logits [..., 3] of the nearest whole boundaries that leave a position to every slice."""
    unique, redundant, _ = np.moveaxis(widths_of(logits, total), -1, 0)
    first = np.clip(np.rint(redundant), 1, total - 2)
    second = np.clip(np.rint(redundant + unique), first + 1, total - 1)
    hardened: NDArray[np.float64] = np.log(np.stack([second - first, first, total - second], -1) / total)
    return hardened
