"""Averages over heads: how the ensemble and every named prediction of an agent are made (method.md 1.2).

Shapes: M modalities of the agent, H heads of one type (one per modality, or a single one), B batch, C classes; any
leading dimensions (agents) pass through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

SLICE_TYPES = ("unique", "redundant", "synergistic")


def type_weights(logits: Mapping[str, Tensor], how: str) -> dict[str, float]:
    """What each slice type counts in averages over logits [..., H, B, C], sum 1.

    how: with `types` every type counts the same, with `heads` every head does.
    """
    heads = {t: 1 if how == "types" else values.shape[-3] for t, values in logits.items()}
    return {t: count / sum(heads.values()) for t, count in heads.items()}


def ensemble(logits: Mapping[str, Tensor], share_M: Tensor, how: str) -> Tensor:
    """Logits [..., H, B, C] by slice type to [..., B, C]: average inside each type, then over the types.

    share_M [..., M]: what the head of each modality counts inside its type.
    """
    weights = type_weights(logits, how)
    return torch.stack([weights[t] * _inside(values, share_M) for t, values in logits.items()]).sum(0)


def prediction_names(modalities: Sequence[str]) -> tuple[str, ...]:
    """Every prediction that is reported: the ensemble, each subset of types, each single unique head."""
    subsets = [types for size in (1, 2) for types in combinations(SLICE_TYPES, size)]
    return ("ensemble", *("+".join(types) for types in subsets), *(f"unique[{m}]" for m in modalities))


def predictions(
    logits: Mapping[str, Tensor], share_M: Tensor, modalities: Sequence[str], how: str
) -> dict[str, Tensor]:
    """Logits [..., B, C] by prediction name; names that need a slice which the agent lacks are absent.

    logits: slice type -> [..., H, B, C]; modalities: the agent's own, in the order of its unique heads.
    """
    made = {"ensemble": ensemble(logits, share_M, how)}
    for size in (1, 2):
        for types in combinations(SLICE_TYPES, size):
            if all(t in logits for t in types):
                made["+".join(types)] = ensemble({t: logits[t] for t in types}, share_M, how)
    for k, m in enumerate(modalities):
        made[f"unique[{m}]"] = logits["unique"][..., k, :, :]
    return made


def _inside(logits: Tensor, share_M: Tensor) -> Tensor:
    """The average over the heads of one type: [..., H, B, C] to [..., B, C]."""
    return logits.squeeze(-3) if logits.shape[-3] == 1 else (share_M[..., None, None] * logits).sum(-3)
