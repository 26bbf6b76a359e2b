"""The losses of DMML-KD between common features and a generator of them (docs/method.md, section 2).

Shapes as in losses.py: M modalities of the agent, B batch, C classes, K points of noise, d width of common features.
A label below 0 means that the sample has none; then it takes no part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from parse_mpi.model.losses import masked_mean


def energy_distance(common_MBd: Tensor, generated_CKd: Tensor, y_B: Tensor, mask_B: Tensor) -> Tensor:
    """How far the common features of a class are from what is generated for it, as distributions: [...], at least 0.

    2 E|c - g| - E|c - c'| - E|g - g'| of each class (Székely and Rizzo, 2013), with |x|^2 the mean over d positions.
    Mean over the labelled samples, then over modalities.
    """
    known_B = mask_B * (y_B >= 0)
    same_BB = (y_B.unsqueeze(-1) == y_B.unsqueeze(-2)) * known_B.unsqueeze(-2)
    count_B = same_BB.sum(-1).clamp(min=1)
    inside = (_distances(common_MBd, common_MBd) * same_BB.unsqueeze(-3)).sum(-1) / count_B.unsqueeze(-2)
    to_all = _distances(common_MBd, generated_CKd.flatten(-3, -2).unsqueeze(-3))
    to_all = to_all.reshape(*to_all.shape[:-1], *generated_CKd.shape[-3:-1]).mean(-1)
    index = y_B.clamp(min=0)
    across = to_all.gather(-1, index[..., None, :, None].expand(*to_all.shape[:-1], 1)).squeeze(-1)
    among = _distances(generated_CKd, generated_CKd).mean((-2, -1)).gather(-1, index)
    return masked_mean(2 * across - inside - among.unsqueeze(-2), known_B.unsqueeze(-2)).mean(-1)


def generated_cross_entropy(logits_CKC: Tensor, y_B: Tensor, mask_B: Tensor) -> Tensor:
    """Cross-entropy of what is generated for a class, over points, then over the classes of the labelled samples."""
    right_CK = logits_CKC.log_softmax(-1).diagonal(dim1=-3, dim2=-1).transpose(-1, -2)
    return -masked_mean(right_CK.mean(-1).gather(-1, y_B.clamp(min=0)), mask_B * (y_B >= 0))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Between rows: [..., n, d] and [..., k, d] to [..., n, k]; without a gradient where two rows are equal."""
    # The faster way by products of matrices loses half of the digits where rows are near each other.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(a.shape[-1])
