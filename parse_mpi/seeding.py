"""Random streams as functions of (job seed, purpose, agent, round): nothing depends on ranks or on order.

There is no global random state anywhere in parse_mpi. A stream is named by a purpose string and any number of
integers, so that an agent draws the same numbers wherever it is hosted and whenever the run is resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for the stream (seed, purpose, indices); the same on every machine and version."""
    text = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A NumPy generator for the stream (seed, purpose, indices)."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *indices)))


def random_keys(seed: int, purpose: str, *indices: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Counter-based 64-bit random numbers for integer arrays that broadcast together (SplitMix64 per index).

    The vectorised sibling of `stream`: element k is a function of (seed, purpose, indices[...][k]) alone.
    """
    with np.errstate(over="ignore"):
        key: NDArray[np.uint64] = np.asarray(derive_seed(seed, purpose), np.uint64)
        for index in indices:
            key = _split_mix(key ^ _split_mix(np.asarray(index).astype(np.uint64)))
    return key


def _split_mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of SplitMix64 (Steele, Lea and Flood 2014), element by element."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
