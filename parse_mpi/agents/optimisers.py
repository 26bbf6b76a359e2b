"""Optimisers on slice rows: one update of a whole [A, P] matrix, an agent's row never touching another's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from parse_mpi import job
from parse_mpi.agents.decentralised_optimisers import D2, GradientTracking, QuasiGlobal
from parse_mpi.agents.local_optimisers import AdamW, RowOptimiser, Sgd
from parse_mpi.agents.rows import SliceRows
from parse_mpi.methods.base import SliceSpec

# A gradient beyond this counts as not finite: with lr at most 1,000 no smaller one can make a float32 row, its momentum
# or its mean square (AdamW) overflow in a step, so that what is sent and saved is finite without looking at every row.
LARGEST_GRADIENT = 1e18


def slice_optimisers(train: job.Train, slices: Iterable[SliceSpec]) -> dict[str, RowOptimiser]:
    """The optimiser of every slice by name: the one that the job names, or plain gradient steps."""
    named = make_optimiser(train)
    return {
        spec.name: named if spec.rate is None else Sgd(job.SgdOptimiser(lr=spec.rate, momentum=0.0)) for spec in slices
    }


def make_optimiser(train: job.Train) -> RowOptimiser:
    """The optimiser that the job names."""
    options = train.optimiser
    if isinstance(options, job.SgdOptimiser):
        return Sgd(options)
    if isinstance(options, job.AdamWOptimiser):
        return AdamW(options)
    if isinstance(options, job.QuasiGlobalOptimiser):
        return QuasiGlobal(options, train.local_steps)
    if isinstance(options, job.GradientTrackingOptimiser):
        return GradientTracking(options)
    return D2(options)


@torch.no_grad()
def guarded_step(slices: Iterable[tuple[RowOptimiser, SliceRows, Tensor]], finite_A: Tensor) -> None:
    """One optimiser step that leaves agents whose gradient is not finite, or as good as that, exactly as they were.

    slices: each slice with its optimiser and the local index int64 [rows] of the agent in every row. finite_A: bool [A]
    over local agents, false where the loss is not finite, and cleared here for agents with such a gradient.
    """
    table = list(slices)
    for _, rows, agent in table:
        g = rows.gradients  # a NaN wins both amax and amin, and fails both comparisons
        finite_A[agent] &= (g.amax(1) <= LARGEST_GRADIENT) & (g.amin(1) >= -LARGEST_GRADIENT)
    if bool(finite_A.all()):
        for optimiser, rows, _ in table:
            optimiser.step(rows)
        return
    for optimiser, rows, agent in table:
        bad = (~finite_A[agent]).nonzero().squeeze(1)
        kept = [(matrix, matrix[bad].clone()) for matrix in rows.matrices().values()]
        optimiser.step(rows)
        for matrix, before in kept:
            matrix[bad] = before
