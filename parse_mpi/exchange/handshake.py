"""The handshake: neighbours tell each other which modalities they hold, at the start and whenever a set changes.

An agent needs its neighbours' sets to know which slices they share, and nothing of anybody else. The plan has the
same answer from the job; a difference means that two ranks run different jobs, and is told before any row is mixed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.errors import LaunchError
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan

Ids = NDArray[np.int64]


def shake_hands(world: World, plan: Plan) -> dict[int, tuple[str, ...]]:
    """Modalities of every remote neighbour of this rank's agents, as the neighbours say; all ranks call it together.

    Raises LaunchError on every rank where a neighbour holds something else than this rank's plan says.
    """
    order = list(plan.shapes)
    told, told_counts, expected = _who_tells_whom(plan, world.rank, world.size)
    heard = _swap(world, _table(plan, order, told), told_counts)
    known = {int(row[0]): _names(order, row[1:]) for row in heard}
    planned = {i: plan.agents[i].modalities for i in expected.tolist()}
    odd = sorted(i for i in known.keys() | planned.keys() if known.get(i) != planned.get(i))
    found = sorted({i for ids in world.all_json(odd) for i in ids})
    if found:
        listed = ", ".join(map(str, found[:8])) + (" and more" if len(found) > 8 else "")
        raise LaunchError(
            f"what agents {listed} tell their neighbours of their modalities is not what the neighbours' job says.\n"
            "Start all ranks with the same job file (is a shared file system stale?)."
        )
    return known


def _who_tells_whom(plan: Plan, rank: int, size: int) -> tuple[Ids, Ids, Ids]:
    """Agents that this rank tells other ranks of, rank after rank; how many of them for each; agents it hears of."""
    pairs = [graph.links() for graph in plan.graphs.values()]
    sender, receiver = np.concatenate([np.empty((0, 2), np.int64), *pairs]).T
    from_rank, to_rank = plan.rank_of[sender], plan.rank_of[receiver]
    out = (from_rank == rank) & (to_rank != rank)
    into = (from_rank != rank) & (to_rank == rank)
    listener, told = np.divmod(np.unique(to_rank[out] * len(plan.rank_of) + sender[out]), len(plan.rank_of))
    return told, np.bincount(listener, minlength=size), np.unique(sender[into])


def _swap(world: World, rows: Ids, counts: Ids) -> Ids:
    """Send each rank its share of the rows [n, k], `counts` [rank] of them; what the others send, rank after rank.

    How many come is asked, not taken from the plan: a wrong plan must not leave anybody waiting.
    """
    incoming = np.empty_like(counts)
    world.comm.Alltoall(counts, incoming)
    width = rows.shape[1]
    heard = np.empty((int(incoming.sum()), width), np.int64)
    world.comm.Alltoallv([rows, (width * counts).tolist()], [heard, (width * incoming).tolist()])
    return heard


def _table(plan: Plan, order: list[str], ids: Ids) -> Ids:
    """A row per agent: its id and the bitmask of what it holds, byte by byte."""
    held = np.zeros((len(ids), len(order)), bool)
    for row, agent in zip(held, ids.tolist(), strict=True):
        row[:] = [m in plan.agents[agent].modalities for m in order]
    return np.column_stack([ids, np.packbits(held, axis=1).astype(np.int64)])


def _names(order: list[str], mask: Ids) -> tuple[str, ...]:
    held = np.unpackbits(mask.astype(np.uint8))[: len(order)]
    return tuple(m for m, bit in zip(order, held, strict=True) if bit)
