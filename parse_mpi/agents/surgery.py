"""Gradient surgery between two camps of agents, without a server (docs/method.md, section 2).

What an agent learnt in a round travels beside the row that it started from, in the columns of its camp. Mixing gives
every agent the mean of its neighbours' starts and, for each camp, its share of the mean update. Where these two point
against each other, each loses what opposes the other (PCGrad, Yu et al. 2020); then both are added. Without a conflict
that is what averaging the rows themselves gives.

Shapes: A agents of this rank that hold the slice, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from parse_mpi.agents.local_optimisers import RowOptimiser, Wrapper
from parse_mpi.agents.rows import SliceRows


class GradientSurgery(Wrapper):
    """An optimiser whose updates are reconciled between two camps. The rows' tracker holds an update for each camp.

    State beside the optimiser's own: `conflicts`, in how many rounds so far the camps opposed each other at an agent.
    """

    def __init__(self, base: RowOptimiser, camps: Sequence[Sequence[int]]):
        super().__init__(base)
        self.scratch = base.scratch + 2
        self.camps = camps

    def state(self, width: int) -> dict[str, int]:
        return {**super().state(width), "conflicts": 1}

    def before_round(self, rows: SliceRows) -> None:
        """Remember where the round starts, in the place of the update."""
        super().before_round(rows)
        torch.mul(rows.local.unsqueeze(1), self._own(rows), out=self._updates(rows))

    def before_send(self, rows: SliceRows) -> None:
        updates = self._updates(rows)
        start = updates.sum(1)
        torch.mul((rows.local - start).unsqueeze(1), self._own(rows), out=updates)
        rows.local.copy_(start)

    def after_mix(self, rows: SliceRows) -> None:
        update, opposed = reconciled(*self._updates(rows).unbind(1))
        rows.local.add_(update)
        rows.state["conflicts"].add_(opposed)
        super().after_mix(rows)

    def _updates(self, rows: SliceRows) -> Tensor:
        """The updates of both camps [A, 2, P], a view."""
        return rows.tracker.view(len(rows.agents), len(self.camps), -1)

    def _own(self, rows: SliceRows) -> Tensor:
        """Which camp each row's agent is in, [A, 2, 1]: 1 there and 0 in the other."""
        own = np.stack([np.isin(rows.agents, camp) for camp in self.camps], 1)
        return torch.from_numpy(own).to(rows.local).unsqueeze(2)


def reconciled(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two updates [A, P] after each has lost what opposes the other as it was, and bool [A, 1] where so."""
    inner = row_sums(first * second)
    shares = [inner / row_sums(update.square()) for update in (first, second)]  # of each, that the other one loses
    opposed = (inner < 0) & shares[0].isfinite() & shares[1].isfinite()  # squares may be 0, or too large
    kept = [1 - torch.where(opposed, share, 0) for share in shares]
    return first * kept[0] + second * kept[1], opposed


def row_sums(values: Tensor) -> Tensor:
    """The sum of every row, [A, P] to [A, 1], pair by pair: its bits do not depend on how many rows there are."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = torch.cat([values[:, :half] + values[:, half : 2 * half], values[:, 2 * half :]], 1)
    return values
