"""Which rank hosts which agent. It decides what crosses between ranks and how even their work is, and no result.

A placement is an array, rank of each agent, int64[A]; all of them give every rank an agent that takes part where there
are as many as ranks. What goes into one: kinds, a number for what each agent holds, int64[A]; costs, its work in a run,
int64[A], 0 for those that never take part; nodes, the node of every rank, int64[K].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import stream
from parse_mpi.topology.hypergraph import hypergraph
from parse_mpi.topology.minimum_cut import nested_cut
from parse_mpi.topology.traffic import Traffic

Index = NDArray[np.int64]

PLACEMENTS = ("share", "contiguous", "round-robin", "by-modality", "minimum-cut")
TOLERANCE = 0.05  # of the mean work of a rank, by which minimum cut may exceed it
MOST_RECEIVERS = 500_000  # of all rows; beyond that graphs are so dense that no cut is small
TRIES, TRIED_AGENTS = 8, 1200  # from so many random orders, fewer where there are many agents
NODE_WEIGHT = 4  # what a byte between nodes weighs against one between ranks of a node


def share(kinds: Index, ranks: int) -> Index:
    """Every rank gets its share of every kind, so that all have about the same work.

    Agents are lined up by their relative position inside their kind and the line is cut into equal parts. Inside a
    kind neighbouring ids stay together, so that a ring crosses ranks as rarely as this allows.
    """
    position = np.empty(len(kinds))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    line = np.argsort(position, kind="stable")
    rank_of = np.empty(len(kinds), np.int64)
    rank_of[line] = np.arange(len(kinds)) * ranks // len(kinds)
    return rank_of


def contiguous(costs: Index, ranks: int) -> Index:
    """Agents by id, in stretches of about equal cost."""
    return _stretches(np.arange(len(costs)), costs, ranks)


def round_robin(costs: Index, ranks: int) -> Index:
    """Agents dealt out by id, those that take part first."""
    rank_of = np.empty(len(costs), np.int64)
    rank_of[np.argsort(costs == 0, kind="stable")] = np.arange(len(costs)) % ranks
    return rank_of


def by_modality(kinds: Index, costs: Index, ranks: int) -> Index:
    """Agents of a kind together, in stretches of about equal cost, so that a rank hosts few kinds."""
    return _stretches(np.argsort(kinds, kind="stable"), costs, ranks)


def simple_placements(kinds: Index, costs: Index, ranks: int) -> dict[str, Index]:
    """All that do not look at who talks to whom."""
    return {
        "share": share(kinds, ranks),
        "contiguous": contiguous(costs, ranks),
        "round-robin": round_robin(costs, ranks),
        "by-modality": by_modality(kinds, costs, ranks),
    }


def place(name: str, kinds: Index, costs: Index, nodes: Index, traffic: Callable[[], Traffic], seed: int) -> Index:
    """The placement of that name; traffic is asked for by minimum cut alone."""
    simple = simple_placements(kinds, costs, len(nodes))
    return simple[name] if name in simple else minimum_cut(simple, costs, nodes, traffic(), seed)


def work(rank_of: Index, costs: Index, ranks: int) -> Index:
    """Cost of all agents of each rank, int64[K]."""
    total = np.zeros(ranks, np.int64)
    np.add.at(total, rank_of, costs)
    return total


def heaviest_work(simple: dict[str, Index], costs: Index, ranks: int) -> int:
    """What minimum cut may give a rank: 5 % more than the mean, or what the heaviest rank has with `share`."""
    return max(int((1 + TOLERANCE) * costs.sum() / ranks), int(work(simple["share"], costs, ranks).max()))


def minimum_cut(simple: dict[str, Index], costs: Index, nodes: Index, traffic: Traffic, seed: int) -> Index:
    """As few bytes between ranks, those between nodes counted four times, as can be found at about equal work.

    Never more than with any of the simple placements whose work is as even. Equal on all ranks: what is random is drawn
    from the seed, and the rest is counting in integers.
    """
    ranks, limit = len(nodes), heaviest_work(simple, costs, len(nodes))

    def crossing(rank_of: Index) -> int:
        between = traffic.between(rank_of)
        return between.total + (NODE_WEIGHT - 1) * between.across(nodes)

    best = min((found for found in simple.values() if work(found, costs, ranks).max() <= limit), key=crossing)
    active = np.flatnonzero(costs)
    if ranks == 1 or len(active) < ranks or traffic.sampled or len(traffic.receivers) > MOST_RECEIVERS:
        return best
    graph = hypergraph(traffic, active.tolist(), costs[active].tolist())

    def better(best: Index, draw: np.random.Generator, start: list[int] | None) -> Index:
        rank_of = best.copy()
        rank_of[active] = nested_cut(graph, nodes.tolist(), limit, draw, start)
        fits = work(rank_of, costs, ranks).max() <= limit and len(np.unique(rank_of[active])) == ranks
        return rank_of if fits and crossing(rank_of) < crossing(best) else best

    found = best
    for k in range(max(1, min(TRIES, TRIED_AGENTS // len(active)))):
        found = better(found, stream(seed, "placement", k), None)
    return better(best, stream(seed, "placement"), best[active].tolist()) if found is best else found


def _stretches(line: Index, costs: Index, ranks: int) -> Index:
    """A line of agents cut into stretches of about equal cost; those that never take part go with who stands before."""
    counts = costs[line] > 0
    if counts.sum() < ranks:  # too few take part for all ranks: everybody counts, and equally
        costs, counts = np.ones_like(costs), np.ones_like(counts)
    own = costs[line][counts]
    rank = (2 * np.cumsum(own) - own) * ranks // (2 * own.sum())  # that of the middle of an agent's cost
    first = np.maximum.accumulate(np.searchsorted(rank, np.arange(ranks)) - np.arange(ranks)) + np.arange(ranks)
    first = np.minimum(first, len(own) - ranks + np.arange(ranks))  # no stretch is empty
    rank = np.searchsorted(first, np.arange(len(own)), side="right") - 1
    rank_of = np.empty(len(line), np.int64)
    rank_of[line] = rank[np.maximum(np.cumsum(counts) - 1, 0)]
    return rank_of
