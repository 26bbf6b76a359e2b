"""Optimisers on slice rows: one update of a whole [A, P] matrix, an agent's row never touching another's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from parse_mpi import job
from parse_mpi.agents.balance import Balanced
from parse_mpi.agents.decentralised_optimisers import D2, GradientTracking, QuasiGlobal
from parse_mpi.agents.local_optimisers import AdamW, Anchored, Rest, RowOptimiser, Sgd
from parse_mpi.agents.rows import SliceRows
from parse_mpi.agents.surgery import GradientSurgery
from parse_mpi.methods.base import SliceSpec

# A gradient or a parameter beyond these counts as not finite: with lr at most 1,000 no smaller ones can make a float32
# row, its momentum or its mean square (AdamW) overflow in a step, nor can a mean over neighbours, so that what is sent
# and saved is finite. Parameters need a limit of their own, as weight decay can make those grow that no loss feels.
LARGEST_GRADIENT = LARGEST_PARAMETER = 1e18


def slice_optimisers(train: job.Train, slices: Iterable[SliceSpec]) -> dict[str, RowOptimiser]:
    """The optimiser of every slice by name: the one that the job names, at the slice's pace, or plain steps."""
    table = tuple(slices)
    named = {pace: make_optimiser(train, pace) for pace in {spec.pace for spec in table}}
    made: dict[str, RowOptimiser] = {
        spec.name: named[spec.pace] if spec.rate is None else Sgd(job.SgdOptimiser(lr=spec.rate, momentum=0.0))
        for spec in table
    }
    made |= {spec.name: Balanced(made[spec.name], spec.balance) for spec in table if spec.balance}
    anchored = {spec.name: Anchored(made[spec.name]) for spec in table if spec.anchored}
    return made | anchored | {spec.name: GradientSurgery(made[spec.name], spec.camps) for spec in table if spec.camps}


def make_optimiser(train: job.Train, pace: float = 1.0) -> RowOptimiser:
    """The optimiser that the job names, with its learning rate times `pace`; at pace 0 rows stay as they are."""
    if not pace:
        return Rest()
    options = train.optimiser.model_copy(update={"lr": pace * train.optimiser.lr})
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
def guarded_step(
    slices: Iterable[tuple[RowOptimiser, SliceRows, Tensor]], finite_A: Tensor, resting_A: Tensor | None = None
) -> None:
    """One optimiser step that leaves agents exactly as they were whose gradient or row is as good as not finite.

    slices: each slice with its optimiser and the local index int64 [rows] of the agent in every row. finite_A: bool [A]
    over local agents, false where the loss is not finite, and cleared here for those agents. resting_A: bool [A], whom
    the step leaves alone, too.
    """
    table = list(slices)
    for _, rows, agent in table:
        for matrix, largest in ((rows.gradients, LARGEST_GRADIENT), (rows.local, LARGEST_PARAMETER)):
            # A NaN wins both amax and amin, and fails both comparisons.
            finite_A[agent] &= (matrix.amax(1) <= largest) & (matrix.amin(1) >= -largest)
    left_A = ~finite_A if resting_A is None else ~finite_A | resting_A
    if not bool(left_A.any()):
        for optimiser, rows, _ in table:
            optimiser.step(rows)
        return
    for optimiser, rows, agent in table:
        left = left_A[agent].nonzero().squeeze(1)
        kept = [(matrix, matrix[left]) for matrix in rows.matrices().values()]
        optimiser.step(rows)
        for matrix, before in kept:
            matrix[left] = before
