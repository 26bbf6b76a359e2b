"""Local learning: PARSE's network and loss without any exchange, the floor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from parse_mpi.methods.base import SliceSpec
from parse_mpi.methods.parse import Parse


@dataclass(frozen=True)
class Local(Parse):
    """The same slices, none of them shared."""

    def _slice(self, name: str, parameters: tuple[str, ...], holders: tuple[int, ...], graph: str) -> SliceSpec:
        return SliceSpec(name, parameters, holders, graph="", groups=())
