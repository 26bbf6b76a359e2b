"""How sure a difference between two methods is: two-level paired bootstrap, Holm's step-down, what could be detected.

Both methods learn from the same partition in every seed and predict the same test samples, so samples are compared in
pairs. Two sources of chance are told apart: the seed (partition, batches, initial values) and which samples happen to
be in the test split. docs/results.md, section "How methods are compared".

Shapes: B draws, S seeds, n test samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from parse_mpi.seeding import stream

Array = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
POWER = 0.8
CHUNK = 1 << 18  # samples drawn at a time: bounds the memory


@dataclass(frozen=True)
class Pairs:
    """What two methods did in one setting: of each seed, a difference by test sample [n]. Seeds count alike.

    same_samples: all seeds have the same test samples in the same order. A draw then takes the same ones in all seeds:
    a hard sample is hard in every seed, and more seeds do not average it away. Raises ValueError without any samples.
    """

    by_seed: tuple[Array, ...]
    same_samples: bool = False

    def __post_init__(self) -> None:
        if not self.by_seed or not all(map(len, self.by_seed)):
            raise ValueError("a comparison needs at least one seed, and each seed at least one test sample")

    @property
    def mean(self) -> float:
        return float(np.mean([values.mean() for values in self.by_seed]))


@dataclass(frozen=True)
class Difference:
    """A mean difference and how sure it is. seeds: the fewest of a setting; samples: of all seeds and settings.

    low, high: the interval. p: two-sided, below 1 - level where the interval leaves out 0. standard_error: of the
    estimate, not widened for few seeds.
    """

    estimate: float
    low: float
    high: float
    p: float
    standard_error: float
    seeds: int
    samples: int

    @property
    def detectable(self) -> float:
        """The smallest true difference whose interval, this wide, leaves out 0 with a probability of POWER."""
        return (self.high - self.low) / 2 + float(norm.ppf(POWER)) * self.standard_error


def compare_pairs(settings: Sequence[Pairs], *, level: float = LEVEL, seed: int = 0, draws: int = DRAWS) -> Difference:
    """Two-level paired bootstrap of the mean over settings (drawn independently), seeds and test samples.

    Each draw takes S seeds with replacement and then, within each, its samples with replacement. Means over seeds that
    are drawn with replacement vary too little, by sqrt((S - 1) / S) and by what tells Student's t from the normal
    distribution; deviations of the first level are widened by both (Hesterberg 2015: the narrowness bias of percentile
    intervals), the second by a factor drawn for each: a normal deviate times it has Student's distribution, so that
    intervals of any level and the small p that a correction asks for are right with few seeds too. The interval lies
    between percentiles of the draws. p is two-sided and from the same draws: twice the share on the other side of 0,
    counting the estimate as one more draw there. Where seeds have samples of their own, the two levels count the chance
    of samples twice, and the interval is wider than it need be, never narrower. With one seed nothing is known of the
    first level: what comes out is the chance in samples alone.
    """
    estimate = float(np.mean([pairs.mean for pairs in settings]))
    drawn = [_deviations(pairs, draws, stream(seed, "bootstrap", k)) for k, pairs in enumerate(settings)]
    plain_B, widened_B = np.mean(drawn, axis=0)
    low, high = estimate + np.quantile(widened_B, [(1 - level) / 2, (1 + level) / 2])
    beyond = np.sum(np.sign(estimate) * (estimate + widened_B) <= 1e-12)  # equal but for rounding is equal
    return Difference(
        estimate=estimate,
        low=float(low),
        high=float(high),
        p=min(1.0, float(2 * (1 + beyond) / (draws + 1))),
        standard_error=float(plain_B.std()),
        seeds=min(len(pairs.by_seed) for pairs in settings),
        samples=sum(len(values) for pairs in settings for values in pairs.by_seed),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down over a family of tests: p-values, in their order, that can all be held against one level."""
    ordered = np.argsort(p_values, kind="stable")
    scaled = np.arange(len(ordered), 0, -1) * np.asarray(p_values, dtype=float)[ordered]
    adjusted = np.empty(len(ordered))
    adjusted[ordered] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in adjusted]


def _deviations(pairs: Pairs, draws: int, rng: np.random.Generator) -> Array:
    """How far the mean of each draw lies from that of the pairs [2, B]: plain, and widened for few seeds."""
    seeds, means_S = len(pairs.by_seed), np.array([values.mean() for values in pairs.by_seed])
    picked_BS = rng.integers(seeds, size=(draws, seeds))
    if pairs.same_samples:
        redrawn_BS = np.take_along_axis(_resampled_means(np.stack(pairs.by_seed, 1), draws, rng), picked_BS, 1)
    else:
        redrawn_BS = np.empty((draws, seeds))
        for k, values in enumerate(pairs.by_seed):
            here = picked_BS == k
            redrawn_BS[here] = _resampled_means(values[:, None], int(here.sum()), rng)[:, 0]
    within_B = (redrawn_BS - means_S[picked_BS]).mean(axis=1)
    free = max(seeds - 1, 1)  # one seed has no deviations to widen
    between_B = np.sqrt(seeds / free) * (means_S[picked_BS].mean(axis=1) - means_S.mean())
    return np.stack([between_B + within_B, between_B * np.sqrt(free / rng.chisquare(free, draws)) + within_B])


def _resampled_means(values_nS: Array, draws: int, rng: np.random.Generator) -> Array:
    """Column means [B, S] of n rows drawn with replacement."""
    n, made = len(values_nS), np.empty((draws, values_nS.shape[1]))
    at_once = max(1, CHUNK // n)
    for start in range(0, draws, at_once):
        part = made[start : start + at_once]
        picked = rng.integers(n, size=(len(part), n)) + n * np.arange(len(part))[:, None]
        part[:] = np.bincount(picked.ravel(), minlength=picked.size).reshape(picked.shape) @ values_nS / n
    return made
