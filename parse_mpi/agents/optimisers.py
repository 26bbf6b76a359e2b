"""Optimisers on slice rows: one update of a whole [A, P] matrix, an agent's row never touching another's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import Optimiser

# A gradient beyond this counts as not finite: with lr at most 1,000 no smaller one can make a float32 row or its
# momentum overflow in a step, so that what is sent and saved is finite without looking at every row again.
LARGEST_GRADIENT = 1e30


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
    """One optimiser step that leaves agents whose gradient is not finite, or as good as that, exactly as they were.

    slices: each slice with the local index int64 [rows] of the agent in every row. finite_A: bool [A] over local
    agents, false where the loss is not finite, and cleared here for agents with such a gradient.
    """
    pairs = list(slices)
    for rows, agent in pairs:
        g = rows.gradients  # a NaN wins both amax and amin, and fails both comparisons
        finite_A[agent] &= (g.amax(1) <= LARGEST_GRADIENT) & (g.amin(1) >= -LARGEST_GRADIENT)
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
