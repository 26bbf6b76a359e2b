"""Optimisers on slice rows: one update of a whole [A, P] matrix, an agent's row never touching another's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import Optimiser


@dataclass(frozen=True)
class Sgd:
    """SGD with heavy-ball momentum, in the convention of torch.optim.SGD: m <- mu m + g, x <- x - lr m."""

    options: Optimiser

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the matrices that it keeps beside the parameters."""
        return ("momentum",) if self.options.momentum else ()

    @torch.no_grad()
    def step(self, rows: SliceRows) -> None:
        """Update all rows of one slice from its gradients, which are spoilt by it."""
        o, direction = self.options, rows.gradients
        if o.weight_decay:
            direction.add_(rows.local, alpha=o.weight_decay)
        if o.momentum:
            direction = rows.state["momentum"].mul_(o.momentum).add_(direction)
        rows.local.add_(direction, alpha=-o.lr)


@torch.no_grad()
def guarded_step(optimiser: Sgd, slices: Iterable[tuple[SliceRows, Tensor]], finite_A: Tensor) -> None:
    """One optimiser step that leaves agents with a non-finite gradient exactly as they were.

    slices: each slice with the local index int64 [rows] of the agent in every row. finite_A: bool [A] over local
    agents, cleared here for every agent whose gradient or loss is not finite.
    """
    pairs = list(slices)
    for rows, agent in pairs:
        finite_A[agent] &= torch.isfinite(rows.gradients.sum(1))
    if bool(finite_A.all()):
        for rows, _ in pairs:
            optimiser.step(rows)
        return
    for rows, agent in pairs:
        bad = (~finite_A[agent]).nonzero().squeeze(1)
        kept = [(matrix, matrix[bad].clone()) for matrix in rows.matrices().values()]
        optimiser.step(rows)
        for matrix, before in kept:
            matrix[bad] = before
