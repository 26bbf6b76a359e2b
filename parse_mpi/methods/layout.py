"""Where each parameter lies in the row of its slice: the bridge between a plain module and slice storage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parse_mpi.methods.base import SliceSpec
from parse_mpi.population import Agent

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ParameterSpan:
    """Parameter `name` of the network is `row[start:stop].view(shape)`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class SliceLayout:
    """The columns of a slice: its parameters in the order of the network, `width` = P in all."""

    spans: tuple[ParameterSpan, ...]

    @property
    def width(self) -> int:
        return self.spans[-1].stop


def slice_layouts(models: Iterable[tuple[Agent, nn.Module]], slices: Iterable[SliceSpec]) -> dict[str, SliceLayout]:
    """Cut the parameters of all models (meta tensors will do) into slices, by slice name; an agent stands for its like.

    Raises ValueError when a parameter lies in no slice or in two, or when two kinds disagree about a slice.
    """
    table = tuple(slices)
    layouts: dict[str, SliceLayout] = {}
    for agent, network in models:
        held = [spec for spec in table if agent.id in spec.holders]
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        for name in shapes:
            owners = [spec.name for spec in held if name.startswith(spec.parameters)]
            if len(owners) != 1:
                raise ValueError(f"parameter {name} lies in {owners or 'no slice'}; it must lie in exactly one")
        for spec in held:
            layout = _layout({name: shape for name, shape in shapes.items() if name.startswith(spec.parameters)})
            if layout.spans and layouts.setdefault(spec.name, layout) != layout:
                raise ValueError(f"two kinds of agents hold slice {spec.name} with different parameters")
    return layouts


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> SliceLayout:
    spans, start = [], 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        spans.append(ParameterSpan(name, shape, start, stop))
        start = stop
    return SliceLayout(tuple(spans))
