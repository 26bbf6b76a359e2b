"""The alignment term of FedEPA, which needs no labels (docs/method.md, section 4); leading dimensions as in losses.py.

Shapes: M modalities of the agent, B batch, d_a and d_c widths of the aligned and the context part. Masks are 1 for
samples that count and 0 for padding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from parse_mpi.job.fedepa import Independence
from parse_mpi.model.losses import contrastive, masked_mean

LEAST_VARIANCE = 1e-8  # added to variances and squared distances: a latent that does not vary is no division by 0


def alignment(
    aligned: Tensor,
    context: Tensor,
    y_B: Tensor,
    mask_B: Tensor,
    *,
    temperature: float,
    independence: Independence,
    context_weight: float,
) -> Tensor:
    """Contrast of aligned parts, dependence of the two, overlap of contexts: [..., M, B, d] with M > 1 to [...]."""
    # Over ordered pairs, so that either modality is the anchor once: the symmetric form of InfoNCE.
    contrast = contrastive(
        {"redundant": aligned}, {}, y_B, mask_B, temperature=temperature, hard_negatives="none", mask_same_label=False
    )
    measure = squared_correlation if independence.kind == "correlation" else hsic
    dependence = measure(aligned, context, mask_B.unsqueeze(-2)).mean(-1)
    return contrast + independence.weight * dependence + context_weight * overlap(context, mask_B)


def squared_correlation(a: Tensor, c: Tensor, mask_B: Tensor) -> Tensor:
    """Mean over all pairs of positions of the squared correlation: a [..., B, d_a], c [..., B, d_c] to [...]."""
    count = mask_B.sum(-1).clamp(min=1)[..., None, None]
    a, c = _standardised(a, mask_B, count), _standardised(c, mask_B, count)
    return (a.transpose(-1, -2) @ c / count).square().mean((-2, -1))


def hsic(a: Tensor, c: Tensor, mask_B: Tensor) -> Tensor:
    """tr(K H L H) / (n - 1)^2 with Gaussian kernels K of a and L of c (Gretton et al., 2005): [..., B, d] to [...].

    The squared bandwidth is the mean squared distance between samples, through which no gradient goes.
    """
    pair_BB = mask_B.unsqueeze(-1) * mask_B.unsqueeze(-2)
    product = _centred(_kernel(a, pair_BB), pair_BB) * _centred(_kernel(c, pair_BB), pair_BB)
    return product.sum((-2, -1)) / (mask_B.sum(-1) - 1).clamp(min=1).square()


def overlap(context: Tensor, mask_B: Tensor) -> Tensor:
    """Mean squared cosine of the same sample's contexts over all pairs of modalities: [..., M, B, d_c] to [...]."""
    c_BMd = normalize(context, dim=-1).transpose(-3, -2)
    squares_BMM = (c_BMd @ c_BMd.transpose(-1, -2)).square()
    M = squares_BMM.shape[-1]
    of_pairs_B = squares_BMM.sum((-2, -1)) - squares_BMM.diagonal(dim1=-2, dim2=-1).sum(-1)
    return masked_mean(of_pairs_B, mask_B) / (M * (M - 1))


def _standardised(x: Tensor, mask_B: Tensor, count: Tensor) -> Tensor:
    """Every position with mean 0 and variance 1 over the samples that count; 0 for the others."""
    mask = mask_B.unsqueeze(-1)
    centred = (x - (x * mask).sum(-2, keepdim=True) / count) * mask
    return centred * (centred.square().sum(-2, keepdim=True) / count + LEAST_VARIANCE).rsqrt()


def _kernel(x: Tensor, pair_BB: Tensor) -> Tensor:
    """exp(-|x_i - x_j|^2 / (2 s^2)), s^2 the mean of |x_i - x_j|^2 over pairs i != j: [..., B, d] to [..., B, B]."""
    norm = x.square().sum(-1)
    distance = (norm.unsqueeze(-1) + norm.unsqueeze(-2) - 2 * x @ x.transpose(-1, -2)).clamp(min=0)
    others = pair_BB * (1 - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device))
    mean = (distance.detach() * others).sum((-2, -1)) / others.sum((-2, -1)).clamp(min=1)
    return (distance / (-2 * (mean + LEAST_VARIANCE)[..., None, None])).exp() * pair_BB


def _centred(kernel: Tensor, pair_BB: Tensor) -> Tensor:
    """H K H over the samples that count; 0 for padding."""
    row = kernel.sum(-1, keepdim=True) / pair_BB.sum(-1, keepdim=True).clamp(min=1)
    column = row.transpose(-1, -2)
    whole = kernel.sum((-2, -1), keepdim=True) / pair_BB.sum((-2, -1), keepdim=True).clamp(min=1)
    return (kernel - row - column + whole) * pair_BB
