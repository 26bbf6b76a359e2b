"""A data file's samples dealt anew to training, validation and test, for runs that should not share one split.

Shape suffixes: N samples, S splits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import SPLIT_NAMES, TEST, TRAIN, VALIDATION
from parse_mpi.seeding import stream

NEEDED_FIRST = (TRAIN, TEST, VALIDATION)  # who gets the samples of a class that has too few for everybody


def fresh_split(labels_N: NDArray[np.int64], split_N: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A random split as large in its parts as `split`, and in these proportions inside every class; uint8 [N].

    A class has a sample in every part that is not empty, as far as it has samples; only where this takes moving some do
    parts differ in size from those of `split`.
    """
    size_S = np.bincount(split_N, minlength=len(SPLIT_NAMES))
    # Lined up by class, samples are dealt in an order in which each part comes at even distances, so that every stretch
    # of the line, and so every class, has its share of each.
    place_N = np.concatenate([(np.arange(size) + 0.5) / size for size in size_S])
    part_N = np.repeat(np.arange(len(size_S), dtype=np.uint8), size_S)[np.argsort(place_N, kind="stable")]
    line_N = stream(seed, "split").permutation(len(labels_N))
    line_N = line_N[np.argsort(labels_N[line_N], kind="stable")]
    _represent(labels_N[line_N], part_N, size_S > 0)
    fresh_N = np.empty(len(labels_N), np.uint8)
    fresh_N[line_N] = part_N
    return fresh_N


def keeps_groups_apart(groups_N: NDArray[np.int64], split_N: NDArray[np.uint8]) -> bool:
    """Whether no group (subject, speaker) of the test samples, or else of the validation samples, is trained on."""
    held_out_N = split_N == (TEST if (split_N == TEST).any() else VALIDATION)
    return bool(held_out_N.any()) and not np.isin(groups_N[held_out_N], groups_N[split_N == TRAIN]).any()


def _represent(labels_N: NDArray[np.int64], part_N: NDArray[np.uint8], used_S: NDArray[np.bool_]) -> None:
    """Change parts in place until every class is in each that is used, or in as many of them as it has samples."""
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        needed = [part for part in NEEDED_FIRST if used_S[part]][: len(members)]
        for part in needed:
            spare_S = np.bincount(part_N[members], minlength=len(used_S)) - np.isin(np.arange(len(used_S)), needed)
            if spare_S[part] < 0:
                giver = members[part_N[members] == spare_S.argmax()][0]
                part_N[giver] = part
