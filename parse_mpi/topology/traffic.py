"""What crosses between ranks: every row with the agents that it goes to, and the bytes of a whole run.

A row crosses to a rank once, however many agents there need it (exchange/routing.py). So what a placement costs is, row
by row, on how many other ranks those who receive it live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.graphs import Pairs
from parse_mpi.topology.slice_graph import SliceGraph

Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Use:
    """Links int64[L, 2] of (sender, receiver) that carry so many bytes each in a run.

    together: links are used in the same rounds, so that a row crosses once for all receivers on a rank.
    """

    links: Pairs
    size_bytes: int
    together: bool


@dataclass(frozen=True, eq=False)
class Between:
    """Bytes from a rank to another, each pair once: source, destination, size_bytes int64[E]."""

    source: Index
    destination: Index
    size_bytes: Index

    @property
    def total(self) -> int:
        return int(self.size_bytes.sum())

    def across(self, nodes: Index) -> int:
        """Bytes between ranks on different nodes; nodes: of each rank, int64[K]."""
        return int(self.size_bytes[nodes[self.source] != nodes[self.destination]].sum())

    def heaviest(self) -> int:
        """What the rank sends that sends most."""
        order = np.argsort(self.source, kind="stable")
        starts = np.flatnonzero(np.diff(self.source[order], prepend=-1))
        return int(np.add.reduceat(self.size_bytes[order], starts).max()) if len(starts) else 0


@dataclass(frozen=True, eq=False)
class Traffic:
    """All rows of a run. Row k goes from sender[k] to receivers[starts[k] : starts[k + 1]], size_bytes[k] in a run.

    sender, size_bytes: int64[N]. starts: int64[N + 1]. receivers: int64[P], agent ids.
    sampled: rows are a sample of what a run may draw, so that a placement must not be fitted to them.
    """

    sender: Index
    size_bytes: Index
    starts: Index
    receivers: Index
    sampled: bool = False

    def between(self, rank_of: Index) -> Between:
        """Bytes between ranks in a run under a placement; rank_of: int64[A]."""
        row = np.repeat(np.arange(len(self.sender)), np.diff(self.starts))
        there = rank_of[self.receivers]
        crosses = there != rank_of[self.sender][row]
        ranks = int(rank_of.max(initial=0)) + 1
        row, there = np.divmod(np.unique(row[crosses] * ranks + there[crosses]), ranks)
        link = rank_of[self.sender[row]] * ranks + there
        order = np.argsort(link, kind="stable")
        starts = np.flatnonzero(np.diff(link[order], prepend=-1))
        size_bytes = np.add.reduceat(self.size_bytes[row][order], starts) if len(starts) else np.empty(0, np.int64)
        return Between(*np.divmod(link[order][starts], ranks), size_bytes)


def uses_of(graph: SliceGraph, row_bytes: float, message_bytes: float) -> Iterator[Use]:
    """What the links of a graph carry, on average over its rounds; row_bytes: what a row carries in the whole run,
    message_bytes: what a link carries that has messages of its own."""
    for links, share, together in graph.usual_rounds():
        yield Use(links, round(share * row_bytes), together)
        yield Use(links, round(share * message_bytes), together=False)


def make_traffic(uses: Iterable[Use], sampled: bool = False) -> Traffic:
    """The rows that links carry; of those that carry nothing, none."""
    senders, sizes, counts, receivers = ([np.empty(0, np.int64)] for _ in range(4))
    for use in uses:
        if not use.size_bytes:
            continue
        sender, receiver = use.links[np.lexsort((use.links[:, 1], use.links[:, 0]))].T
        if use.together:
            own, count = np.unique(sender, return_counts=True)
        else:
            own, count = sender, np.ones(len(sender), np.int64)
        senders.append(own)
        sizes.append(np.full(len(own), use.size_bytes))
        counts.append(count.astype(np.int64))
        receivers.append(receiver)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return Traffic(np.concatenate(senders), np.concatenate(sizes), starts, np.concatenate(receivers), sampled)
