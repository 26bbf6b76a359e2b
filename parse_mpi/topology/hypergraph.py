"""Rows as nets of a hypergraph: a sender and its receivers. Cutting it into parts is placing agents on ranks.

A net whose agents lie in k parts costs k - 1 times its weight, which is what crosses between ranks. Everything here is
a list of integers and in plain Python, so that all ranks get the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parse_mpi.topology.traffic import Traffic

LARGE_NET = 64  # a net of more vertices hardly ever leaves a part, and looking at all of them takes long


@dataclass(frozen=True)
class Hypergraph:
    """costs: of each vertex. pins: the vertices of each net, two or more, ascending. weights: of each net."""

    costs: list[int]
    pins: list[tuple[int, ...]]
    weights: list[int]

    @cached_property
    def nets_of(self) -> list[list[int]]:
        """The nets of every vertex."""
        nets: list[list[int]] = [[] for _ in self.costs]
        for net, pins in enumerate(self.pins):
            for vertex in pins:
                nets[vertex].append(net)
        return nets

    def restricted(self, vertices: Sequence[int]) -> Hypergraph:
        """What is left with these vertices alone, which are numbered in their order.

        What its parts cost differs from what they cost in the whole by a constant, as long as the others stay put.
        """
        number = {vertex: k for k, vertex in enumerate(vertices)}
        inside = {net for vertex in vertices for net in self.nets_of[vertex]}
        kept = (
            (tuple(sorted(number[v] for v in self.pins[net] if v in number)), self.weights[net])
            for net in sorted(inside)
        )
        return _merged([self.costs[v] for v in vertices], kept)

    def coarser(self, order: Iterable[int], largest: int) -> tuple[Hypergraph, list[int]]:
        """Pairs of vertices that share most as one vertex each, and which vertex each has become.

        order: in which vertices choose. largest: cost that no pair may exceed.
        """
        partner = list(range(len(self.costs)))
        is_free = [True] * len(self.costs)
        for vertex in order:
            if not is_free[vertex]:
                continue
            shared: dict[int, float] = {}
            for net in self.nets_of[vertex]:
                pins = self.pins[net]
                if len(pins) <= LARGE_NET:
                    for other in pins:
                        shared[other] = shared.get(other, 0.0) + self.weights[net] / (len(pins) - 1)
            room = largest - self.costs[vertex]
            fitting = [u for u in shared if u != vertex and is_free[u] and self.costs[u] <= room]
            if fitting:
                chosen = max(fitting, key=lambda u: (shared[u], -u))
                partner[vertex], partner[chosen] = chosen, vertex
                is_free[vertex] = is_free[chosen] = False
        heads = [v for v, other in enumerate(partner) if v <= other]
        number = {head: k for k, head in enumerate(heads)}
        became = [number[min(v, other)] for v, other in enumerate(partner)]
        costs = [self.costs[v] + (self.costs[partner[v]] if partner[v] != v else 0) for v in heads]
        nets = ((tuple(sorted({became[v] for v in pins})), w) for pins, w in zip(self.pins, self.weights, strict=True))
        return _merged(costs, nets), became


def hypergraph(traffic: Traffic, agents: Sequence[int], costs: Sequence[int]) -> Hypergraph:
    """The rows of a run as nets. agents: all that send or receive, ascending, each with its cost; numbered in order."""
    number = np.zeros(max(agents) + 1, np.int64)
    number[list(agents)] = np.arange(len(agents))
    senders, ends = number[traffic.sender].tolist(), number[traffic.receivers].tolist()
    starts = traffic.starts.tolist()
    nets = (
        (tuple(sorted({sender, *ends[start:end]})), weight)
        for sender, start, end, weight in zip(senders, starts, starts[1:], traffic.size_bytes.tolist(), strict=False)
    )
    return _merged(list(costs), nets)


def _merged(costs: list[int], nets: Iterable[tuple[tuple[int, ...], int]]) -> Hypergraph:
    """Nets of the same vertices are one with the sum of their weights; those of a single vertex cost nothing."""
    weight_of: dict[tuple[int, ...], int] = {}
    for pins, weight in nets:
        if len(pins) > 1 and weight:
            weight_of[pins] = weight_of.get(pins, 0) + weight
    return Hypergraph(costs, list(weight_of), list(weight_of.values()))
