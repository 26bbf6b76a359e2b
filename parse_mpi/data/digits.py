"""The built-in real data set: scikit-learn's copy of the UCI handwritten digits, cut into halves or quadrants.

1,797 images of 8x8 pixels, 10 classes. No part tells all digits apart: on pooled data logistic regression reaches
about .86 with the top, .85 with the bottom, .62 to .72 with a quadrant and .97 with the whole. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from parse_mpi.errors import DataError
from parse_mpi.seeding import stream

BRIGHTEST = 16  # the pixels count inked cells, 0..16
FIRST, LAST, ALL = slice(None, 4), slice(4, None), slice(None)
CUTS = {  # rows and columns of each modality
    "halves": {"top": (FIRST, ALL), "bottom": (LAST, ALL)},
    "quadrants": {
        "top_left": (FIRST, FIRST),
        "top_right": (FIRST, LAST),
        "bottom_left": (LAST, FIRST),
        "bottom_right": (LAST, LAST),
    },
}


def load_digits(seed: int, cut: str = "halves") -> Dataset:
    """float32 in 0..1, modalities top and bottom [1797, 4, 8], or top_left, top_right, bottom_left and bottom_right
    [1797, 4, 4]; the split depends on `seed`, nothing else does."""
    pixels, labels = _read()
    images = np.asarray(pixels / BRIGHTEST, dtype=np.float32)
    return Dataset(
        name="digits",
        modalities={
            part: np.ascontiguousarray(images[:, rows, columns]) for part, (rows, columns) in CUTS[cut].items()
        },
        labels=labels,
        split=stratified_split(labels, stream(seed, "split")),
        class_names=tuple("0123456789"),
        attributes={
            "source": "UCI Optical Recognition of Handwritten Digits (test part), as shipped with scikit-learn",
            "licence": "CC BY 4.0",
            "citation": "E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi:10.24432/C50P49",
        },
    )


def _read() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels [1797, 8, 8] and digits, from the file of scikit-learn: importing it takes longer than many a run."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("the digits come with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rb") as file:
        rows = np.array([line.split(b",") for line in file], np.float64)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def stratified_split(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Deals 70 % of every class to training, 10 % to validation and the rest to test; uint8 [N]."""
    split = np.full(len(labels), TEST, dtype=np.uint8)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        train_end, validation_end = round(0.7 * len(members)), round(0.8 * len(members))
        split[members[:train_end]] = TRAIN
        split[members[train_end:validation_end]] = VALIDATION
    return split
