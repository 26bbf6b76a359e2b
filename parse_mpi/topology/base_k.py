"""The Base-(k+1) graph: rounds with at most k neighbours after which any number of agents has the exact mean.

Takezawa, Sato, Bao, Niwa and Yamada, "Beyond Exponential Graph" (NeurIPS 2023), as docs/method.md, section 1.5,
tells it. Everything here is about ranks 0 .. count - 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.graphs import Pairs, stacked

Ranks = NDArray[np.int64]


@dataclass
class Round:
    """Edges between ranks with the weight of each; an agent is in no edge, or in some of at most k."""

    edges: list[Pairs] = field(default_factory=list)
    weights: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, edges: Pairs, weight: float) -> None:
        self.edges.append(edges)
        self.weights.append(np.full(len(edges), weight))

    def all_edges(self) -> Pairs:
        """int64[E, 2]."""
        return stacked(self.edges)

    def all_weights(self) -> NDArray[np.float64]:
        """float64[E], in the order of `all_edges`."""
        return np.concatenate([np.empty(0), *self.weights])


def base_graph(count: int, k: int) -> list[Round]:
    """The shorter of the paper's two: the Simple Base-(k+1) graph, or several of them that are then averaged.

    For the second, count = p q with p the largest divisor that has no prime factor above k + 1: p Simple graphs of q
    agents side by side, then a hyper-hypercube over the p agents in the same place.
    """
    ranks = np.arange(count)
    simple = [Round() for _ in range(_simple_length(count, k))]
    _add_simple(simple, ranks, k)
    smooth = max(
        divisor for divisor in range(1, count + 1) if count % divisor == 0 and _factors(divisor, k) is not None
    )
    grid, length = ranks.reshape(smooth, -1), _simple_length(count // smooth, k)
    mixed = [Round() for _ in range(length + len(_factors(smooth, k) or ()))]
    for row in grid:
        _add_simple(mixed, row, k)
    for column in grid.T:
        _add_hypercube(mixed[length:], column, _factors(smooth, k) or ())
    return min(simple, mixed, key=len)


def _add_simple(rounds: Sequence[Round], ranks: Ranks, k: int) -> None:
    """The Simple Base-(k+1) graph among some ranks.

    The ranks are cut into parts of a (k+1)^p, one for each digit a of their number, large ones first.
    1. Each part averages inside. 2. Part by part, each agent of the later ones is joined to one agent of each of the
    part's a blocks, with the weight that gives every block the mean of all. 3. Each block averages inside.
    """
    digits = _digits(len(ranks), k + 1)
    parts = np.split(ranks, np.cumsum([a * (k + 1) ** p for a, p in digits])[:-1])
    for (a, p), part in zip(digits, parts, strict=True):
        _add_hypercube(rounds, part, _part_factors(a, p, k))
    joined = _first_stage(digits, k)
    for turn, ((a, p), part) in enumerate(zip(digits[:-1], parts[:-1], strict=True)):
        later = np.concatenate(parts[turn + 1 :])
        weight = (k + 1) ** p / (len(part) + len(later))
        for block in part.reshape(a, -1):
            rounds[joined + turn].add(np.stack([block[: len(later)], later], axis=1), weight)
            _add_hypercube(rounds[joined + turn + 1 :], block, (k + 1,) * p)


def _simple_length(count: int, k: int) -> int:
    """Rounds of the Simple graph: averaging inside the parts, then joining and averaging in the largest's blocks."""
    digits = _digits(count, k + 1)
    return _first_stage(digits, k) + (1 + digits[0][1] if len(digits) > 1 else 0)


def _first_stage(digits: Sequence[tuple[int, int]], k: int) -> int:
    return max(len(_part_factors(a, p, k)) for a, p in digits)


def _part_factors(digit: int, power: int, k: int) -> tuple[int, ...]:
    return (k + 1,) * power + ((digit,) if digit > 1 else ())


def _add_hypercube(rounds: Sequence[Round], ranks: Ranks, factors: Iterable[int]) -> None:
    """The hyper-hypercube: in each round those average whose places differ in one digit only, one factor a round."""
    stride = 1
    for current, factor in zip(rounds, factors, strict=False):
        meeting = ranks.reshape(-1, factor, stride).swapaxes(1, 2).reshape(-1, factor)
        pairs = np.array(list(combinations(range(factor), 2)))
        current.add(meeting[:, pairs].reshape(-1, 2), 1.0 / factor)
        stride *= factor


def _digits(count: int, base: int) -> list[tuple[int, int]]:
    """(digit, power) of each digit of `count` that is not 0, the highest power first."""
    digits, power = [], 0
    while count:
        count, digit = divmod(count, base)
        if digit:
            digits.append((digit, power))
        power += 1
    return digits[::-1]


@cache
def _factors(number: int, k: int) -> tuple[int, ...] | None:
    """As few factors of at most k + 1 as can be; None where a prime factor is larger."""
    if number == 1:
        return ()
    found = [
        (factor, *rest)
        for factor in range(2, min(k + 1, number) + 1)
        if number % factor == 0 and (rest := _factors(number // factor, k)) is not None
    ]
    return min(found, key=len, default=None)
