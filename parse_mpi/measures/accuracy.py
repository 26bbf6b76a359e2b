"""Accuracy of agents, on the common split and reweighted by what each agent saw in training (method.md 1.7).

Shapes: A agents, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WEIGHTINGS = ("global", "local")


def accuracies(
    correct_AC: NDArray[np.int64], samples_C: NDArray[np.int64], trained_AC: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Accuracy [A, 2] in the order of WEIGHTINGS.

    correct_AC: right predictions per class; samples_C: samples per class in the split; trained_AC: training samples
    per class. local: recall per class, weighted by the agent's training class frequencies over the classes that the
    split has; nan for an agent that trained on none of them.
    """
    whole = correct_AC.sum(1) / samples_C.sum()
    present = samples_C > 0
    recall = correct_AC[:, present] / samples_C[present]
    seen = trained_AC[:, present]
    with np.errstate(invalid="ignore"):
        own = (recall * seen).sum(1) / seen.sum(1)
    return np.stack([whole, own], axis=1)
