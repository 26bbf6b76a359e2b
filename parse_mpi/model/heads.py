"""Averages over heads: how the ensemble and every named prediction of an agent are made (method.md 1.2).

Shapes: H heads of one type, B batch, C classes; any leading dimensions (agents) pass through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

SLICE_TYPES = ("unique", "redundant", "synergistic")


def average_heads(values: Mapping[str, Tensor], dim: int, how: str) -> Tensor:
    """Average over heads along `dim` (counted from the end), for every slice type in `values`.

    how: `types` averages inside a type first, then over types; `heads` gives every head the same weight.
    """
    if how == "heads":
        return torch.cat(list(values.values()), dim).mean(dim)
    return torch.stack([value.mean(dim) for value in values.values()]).mean(0)


def prediction_names(modalities: Sequence[str]) -> tuple[str, ...]:
    """Every prediction that is reported: the ensemble, each subset of types, each single unique head."""
    subsets = [types for size in (1, 2) for types in combinations(SLICE_TYPES, size)]
    return ("ensemble", *("+".join(types) for types in subsets), *(f"unique[{m}]" for m in modalities))


def predictions(logits: Mapping[str, Tensor], modalities: Sequence[str], how: str) -> dict[str, Tensor]:
    """Logits [..., B, C] by prediction name; names that need a slice which the agent lacks are absent.

    logits: slice type -> [..., H, B, C]; modalities: the agent's own, in the order of its unique heads.
    """
    made = {"ensemble": average_heads(logits, -3, how)}
    for size in (1, 2):
        for types in combinations(SLICE_TYPES, size):
            if all(t in logits for t in types):
                made["+".join(types)] = average_heads({t: logits[t] for t in types}, -3, how)
    for k, m in enumerate(modalities):
        made[f"unique[{m}]"] = logits["unique"][..., k, :, :]
    return made
