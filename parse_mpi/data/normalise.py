"""Standardisation from sums that agents can add up without showing each other a sample.

Every holder of a modality adds its `moments`; `standardise` turns the network's totals into a mean and a scale per
feature. Samples never leave their agent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import SampleArray, in_blocks

SMALLEST_SCALE = 0.1  # [R] as a share of the modality's root mean square standard deviation
ROUNDING_ERROR = 1e-12  # of a variance relative to the squared mean, after summing squares in float64


def moments(samples: SampleArray, index: NDArray[np.int64]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Count, sum and sum of squares over samples[index]; the sums are float64 of one sample's shape."""
    total, squares = np.zeros((2, *samples.shape[1:]))
    for block in in_blocks(samples, index):
        wide = block.astype(np.float64)
        total += wide.sum(axis=0)
        squares += np.square(wide).sum(axis=0)
    return len(index), total, squares


def standardise(
    count: int, total: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale per feature, float32 of the sample's shape, for (x - mean) / scale; `count` is at least 1.

    The scale is the standard deviation, but at least a tenth of the modality's root mean square standard deviation,
    so that a feature that hardly varies in training does not explode in a test sample. A modality in which no feature
    varies is only centred (scale 1).
    """
    mean = total / count
    variance = squares / count - np.square(mean)
    variance = np.where(variance > ROUNDING_ERROR * np.square(mean), variance, 0.0)
    floor = SMALLEST_SCALE * np.sqrt(variance.mean())
    scale = np.maximum(np.sqrt(variance), floor) if floor > 0 else np.ones_like(variance)
    return mean.astype(np.float32), scale.astype(np.float32)
