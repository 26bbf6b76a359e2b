"""What a data set is, whatever source it came from.

Shape suffixes: N samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import stream

SPLIT_NAMES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
BLOCK_BYTES = 16 << 20  # of samples handled at a time
DIGESTED_WHOLE_BYTES = 1 << 30  # of a modality: a larger one is known by a sample of its rows
DIGESTED_SAMPLE_BYTES = 64 << 20


class SampleArray(Protocol):
    """The samples of one modality [N, ...]: a NumPy array, or a file whose rows are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Dataset:
    """Paired samples: row n of every modality, label, split and group is the same event.

    modalities: float32 [N, ...], finite; C-contiguous where they lie in memory. labels: int64 [N] in 0..class_count-1.
    split: uint8 [N], 0 train, 1 validation, 2 test. groups: int64 [N], the subject or speaker, where known.
    attributes: source, licence and citation, as far as known.
    """

    name: str
    modalities: Mapping[str, SampleArray]
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

        Equal on two ranks only if both hold the same data; neither the order in which modalities are listed counts, nor
        whether they lie in memory. Of a modality beyond 1 GiB only rows are hashed that a fixed seed chooses, 64 MiB of
        them. Worked out once: a study plans many cells on the same data.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256(repr(self.class_names).encode())
        tables: dict[str, NDArray[np.generic]] = {"labels": self.labels, "split": self.split}
        if self.groups is not None:
            tables["groups"] = self.groups
        for name, values in sorted(tables.items()):
            total.update(repr((name, values.dtype.str, values.shape)).encode())
            total.update(np.ascontiguousarray(values).data)
        for name, samples in sorted(self.modalities.items()):
            total.update(repr((f"modalities/{name}", samples.shape)).encode())
            for block in in_blocks(samples, _digested_rows(samples)):
                total.update(np.ascontiguousarray(block).data)
        return total.hexdigest()


def size_bytes(samples: SampleArray) -> int:
    """What the samples of a modality take in memory."""
    return 4 * math.prod(samples.shape)


def in_blocks(samples: SampleArray, index: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """samples[index] in blocks of bounded size, so that a file larger than the memory never lies in it."""
    rows = max(1, BLOCK_BYTES // max(1, 4 * math.prod(samples.shape[1:])))
    for start in range(0, len(index), rows):
        yield samples[index[start : start + rows]]


def _digested_rows(samples: SampleArray) -> NDArray[np.int64]:
    count, size = samples.shape[0], size_bytes(samples)
    if size <= DIGESTED_WHOLE_BYTES:
        return np.arange(count)
    drawn = max(1, DIGESTED_SAMPLE_BYTES * count // size)
    return np.sort(stream(0, "digest").choice(count, drawn, replace=False))
