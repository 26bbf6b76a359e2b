"""What a data set is once it lies in memory, whatever source it came from.

Shape suffixes: N samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SPLIT_NAMES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Dataset:
    """Paired samples: row n of every modality, label, split and group is the same event.

    modalities: float32 [N, ...], finite, C-contiguous. labels: int64 [N] in 0..class_count-1. split: uint8 [N],
    0 train, 1 validation, 2 test. groups: int64 [N], the subject or speaker, where known. attributes: source, licence
    and citation, as far as known.
    """

    name: str
    modalities: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    class_names: tuple[str, ...]
    groups: NDArray[np.int64] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_count(self) -> int:
        return len(self.class_names)

    def indices(self, split: int) -> NDArray[np.int64]:
        """Ascending row numbers of one split (TRAIN, VALIDATION or TEST)."""
        return np.flatnonzero(self.split == split)

    def digest(self) -> str:
        """SHA-256 over every array with its name, type and shape, and over the class names.

        Equal on two ranks only if both hold the same data; the order in which modalities are listed does not count.
        """
        arrays: dict[str, NDArray[np.generic]] = {f"modalities/{name}": x for name, x in self.modalities.items()}
        arrays |= {"labels": self.labels, "split": self.split}
        if self.groups is not None:
            arrays["groups"] = self.groups
        total = hashlib.sha256(repr(self.class_names).encode())
        for name, values in sorted(arrays.items()):
            total.update(repr((name, values.dtype.str, values.shape)).encode())
            total.update(np.ascontiguousarray(values).data)
        return total.hexdigest()
