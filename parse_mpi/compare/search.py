"""Random search: what may be drawn for a key, and the configurations that a seed draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from parse_mpi.compare.schema import Settings
from parse_mpi.joberrors import show
from parse_mpi.seeding import stream

SIGNIFICANT_DIGITS = 4  # of a drawn number: what stands in the files is what was used
HOW = "write a list of choices, {uniform: [low, high]} or {log-uniform: [low, high]}"


@dataclass(frozen=True)
class Range:
    """A number between low and high, uniform or uniform in its logarithm."""

    low: float
    high: float
    is_log: bool

    def draw(self, generator: np.random.Generator) -> float:
        if self.is_log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    values: tuple[JsonValue, ...]

    def draw(self, generator: np.random.Generator) -> JsonValue:
        return self.values[int(generator.integers(len(self.values)))]


def read_draw(value: JsonValue) -> Range | Choice:
    """What a value of `tuning.space` means. Raises ValueError for one that means nothing."""
    if isinstance(value, list) and value:
        return Choice(tuple(value))
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= {"uniform", "log-uniform"}:
        raise ValueError(f"{show(value)} is nothing to draw from; {HOW}")
    ((kind, limits),) = value.items()
    if not isinstance(limits, list) or len(limits) != 2 or not all(_is_number(limit) for limit in limits):
        raise ValueError(f"`{kind}` is {show(limits)}; it must be two numbers, [low, high]")
    low, high = (float(limit) for limit in limits if isinstance(limit, int | float))
    if not low < high or (kind == "log-uniform" and low <= 0):
        needs = "0 < low < high" if kind == "log-uniform" else "low < high"
        raise ValueError(f"`{kind}` is {show(limits)}; [low, high] needs {needs}")
    return Range(low, high, kind == "log-uniform")


def draw_settings(space: Mapping[str, JsonValue], seed: int, data: str, method: str, number: int) -> Settings:
    """The number-th draw for a pair of data and method: the same for each key, whichever other keys there are."""
    return {
        key: read_draw(value).draw(stream(seed, f"tuning {data} {method} {key}", number))
        for key, value in space.items()
    }


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
