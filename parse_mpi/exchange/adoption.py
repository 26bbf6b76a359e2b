"""Adoption: an agent that gains a slice in mid-run starts from the row of a neighbour that holds it.

Its initial values would pull the neighbours back to the beginning. Every rank works out the same pairs from the plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from mpi4py import MPI

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.seeding import stream

TAG = 1 << 14  # one for all: messages between two ranks stay in order


def donors(before: Plan, after: Plan) -> list[tuple[str, int, int]]:
    """(slice, newcomer, donor) for each agent that holds a slice in `after` but not in `before`.

    The donor is drawn among the neighbours that held the slice before; without one the newcomer keeps its initial
    values and is not listed.
    """
    held = {spec.name: set(spec.holders) for spec in before.slices}
    pairs = []
    for spec in after.slices:
        new = [i for i in spec.holders if i not in held.get(spec.name, set())]
        if not new or not spec.graph:
            continue
        sender, receiver = after.graphs[spec.graph].links().T
        old = np.isin(sender, sorted(held.get(spec.name, set()) & set(spec.holders)))
        for agent in new:
            candidates = np.unique(sender[old & (receiver == agent)])
            if len(candidates):
                draw = stream(after.job.seed, f"donor:{spec.name}", agent, after.start)
                pairs.append((spec.name, agent, int(draw.choice(candidates))))
    return pairs


def adopt(world: World, before: Plan, after: Plan, slices: Mapping[str, SliceRows]) -> None:
    """Copy the donors' parameters into the newcomers' rows, wherever both are; all ranks call it together."""
    rank_of = after.rank_of
    requests, kept, arrivals = [], [], []
    for name, agent, donor in donors(before, after):
        if world.rank not in (rank_of[agent], rank_of[donor]):
            continue
        rows = slices[name]
        if rank_of[donor] == world.rank:
            row = rows.local[_index(rows, donor)].cpu().numpy().copy()
            if rank_of[agent] == world.rank:
                arrivals.append((rows, agent, row))
            else:
                kept.append(row)
                requests.append(world.comm.Isend(row, int(rank_of[agent]), TAG))
        else:
            row = np.empty(rows.layout.width, str(rows.local.dtype).removeprefix("torch."))
            requests.append(world.comm.Irecv(row, int(rank_of[donor]), TAG))
            arrivals.append((rows, agent, row))
    MPI.Request.Waitall(requests)
    for rows, agent, row in arrivals:
        rows.local[_index(rows, agent)] = torch.from_numpy(row)


def _index(rows: SliceRows, agent: int) -> int:
    return int(np.flatnonzero(rows.agents == agent)[0])
