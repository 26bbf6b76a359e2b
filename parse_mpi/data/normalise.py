"""Standardisation from sums that agents can add up without showing each other a sample.

Every holder of a modality adds its `moments`; `standardise` turns the network's totals into a mean and a scale per
feature. Samples never leave their agent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import SampleArray, in_blocks

FARTHEST = 10.0  # [R] standard deviations from the mean; a value beyond is taken as that far away
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
    """Mean and scale per feature, float32 of the sample's shape, for (x - mean) / scale within `FARTHEST`.

    count: of the samples that were summed, at least 1.

    The scale is the feature's own standard deviation, since features of one modality may have different units. That of
    a feature which does not vary is infinite: it says nothing, and becomes 0 in every sample.
    """
    mean = total / count
    variance = squares / count - np.square(mean)
    varies = variance > ROUNDING_ERROR * np.square(mean)
    scale = np.sqrt(np.where(varies, variance, np.inf))
    return mean.astype(np.float32), scale.astype(np.float32)
