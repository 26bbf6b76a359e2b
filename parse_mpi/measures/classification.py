"""Macro-F1 and calibration error of one agent's predictions (method.md 1.7).

Shapes: N samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 15
EDGES = np.arange(1, BINS) / BINS


def macro_f1(label_N: NDArray[np.integer], predicted_N: NDArray[np.integer]) -> float:
    """The plain mean of F1 over the classes that have samples here; nan without samples."""
    if not len(label_N):
        return np.nan
    count = 1 + int(max(label_N.max(), predicted_N.max()))
    true, made, right = (
        np.bincount(classes, minlength=count) for classes in (label_N, predicted_N, label_N[label_N == predicted_N])
    )
    present = true > 0
    return float((2 * right[present] / (true + made)[present]).mean())


def calibration_error(right_N: NDArray[np.bool_], confidence_N: NDArray[np.floating]) -> float:
    """Expected calibration error (Guo et al., 2017); nan without samples.

    Samples fall into BINS bins of equal width by the confidence in their predicted class, each bin without its lower
    edge; the gaps between accuracy and mean confidence of the bins are averaged by their samples.
    """
    if not len(right_N):
        return np.nan
    confidence = confidence_N.astype(np.float64)
    gaps = np.bincount(np.digitize(confidence, EDGES, right=True), right_N - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right_N))
