"""The loss terms of PARSE (method.md 1.3), written for any leading dimensions so that both engines share them.

Shapes: M modalities of the agent, B batch, C classes, H heads of one type, d slice width; `...` is nothing in the
loop engine and the agents in the stacked one. Masks are 1 for samples that count and 0 for padding. A label below 0
means that the sample has none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import normalize


def masked_mean(value_B: Tensor, mask_B: Tensor) -> Tensor:
    """Mean over the samples that count: [..., B] to [...]; 0 where none does."""
    return (value_B * mask_B).sum(-1) / mask_B.sum(-1).clamp(min=1)


def cross_entropy(logits_BC: Tensor, y_B: Tensor, mask_B: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled samples that count: logits [..., B, C], y int64 [..., B] to [...].

    y and mask are broadcast over heads. 0 without gradient where no sample is labelled.
    """
    index = y_B.clamp(min=0).unsqueeze(-1).expand(*logits_BC.shape[:-1], 1)
    chosen_B = logits_BC.gather(-1, index).squeeze(-1)
    return masked_mean(logits_BC.logsumexp(-1) - chosen_B, mask_B * (y_B >= 0))


def contrastive(
    z: Mapping[str, Tensor],
    projected: Mapping[str, Tensor],
    y_B: Tensor,
    mask_B: Tensor,
    *,
    temperature: float,
    hard_negatives: str,
    mask_same_label: bool,
) -> Tensor:
    """The alignment term L_con over ordered modality pairs: each of z [..., M, B, d] to [...] (method.md 1.3).

    Anchor z_r^m(j), positive z_r^m'(j); negatives z_r^m'(k), k != j, and with `hard_negatives` the same sample's
    z_u^m, z_u^m', z_s^m, z_s^m' (`squared`: their squared cosine, which asks for orthogonality). Slices of different
    types are compared as they stand in `projected`, [..., M, B, width] each, unless that is empty. Mean over anchors,
    then over pairs, so that beta means the same for two and for more modalities. A sample without a label is of no
    other sample's class.
    """
    M, B = z["redundant"].shape[-3:-1]
    r = normalize(z["redundant"], dim=-1)
    flat = r.flatten(-3, -2)  # one product for all pairs, also of a modality with itself
    products = (flat / temperature) @ flat.transpose(-1, -2)
    logits = _of_different(products.reshape(*r.shape[:-3], M, B, M, B).transpose(-3, -2))  # [..., pairs, B, B]
    del products  # the largest tensor of a local step

    positive = torch.eye(B, dtype=torch.bool, device=r.device)
    counts = mask_B.bool().unsqueeze(-2)  # [..., 1, B]: may sample k be a negative of anchor j
    if mask_same_label:
        counts = counts & ((y_B.unsqueeze(-1) != y_B.unsqueeze(-2)) | (y_B < 0).unsqueeze(-2))
    excluded = ~(counts | positive)
    logits = logits.masked_fill(excluded.unsqueeze(-3), -torch.inf)
    if hard_negatives != "none":
        hard = _of_different(_hard_negatives(projected or z))
        logits = torch.cat([logits, (hard.square() if hard_negatives == "squared" else hard) / temperature], -1)
    loss = logits.logsumexp(-1) - logits.diagonal(dim1=-2, dim2=-1)  # the diagonal of the first B columns
    return masked_mean(loss, mask_B.unsqueeze(-2)).mean(-1)


def _of_different(values: Tensor) -> Tensor:
    """The ordered pairs of different modalities: [..., M, M, B, n] to [..., M (M - 1), B, n].

    Without its first entry the flat list of all pairs has every pair of equal modalities at the end of a row of M + 1.
    """
    M = values.shape[-4]
    rows = values.flatten(-4, -3)[..., 1:, :, :].reshape(*values.shape[:-4], M - 1, M + 1, *values.shape[-2:])
    return rows[..., :-1, :, :].flatten(-4, -3)


def _hard_negatives(z: Mapping[str, Tensor]) -> Tensor:
    """Cosines of anchor z_r^m(j) with z_u^m, z_u^m', z_s^m and z_s^m' of the same sample: [..., M, M, B, 4]."""
    anchor, *near = (normalize(z[t], dim=-1) for t in ("redundant", "unique", "synergistic"))
    # One product for both types, sample by sample: small products cost by their number.
    both = torch.cat(near, -3).transpose(-3, -2).transpose(-1, -2)
    columns = []
    for other in (anchor.transpose(-3, -2) @ both).movedim(-3, -1).chunk(2, -2):  # [..., M, M, B] each
        own = other.diagonal(dim1=-3, dim2=-2).transpose(-1, -2).unsqueeze(-2)
        columns += [own.expand_as(other), other]
    return torch.stack(columns, -1)
