"""Training balance: encoders of modalities that learn fast take fewer local steps (docs/method.md, section 2).

Every agent compares its own encoders with each other, so that nothing of this travels. An agent with one modality takes
every step.

Shapes: A agents of this rank that hold the slice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parse_mpi.agents.local_optimisers import RowOptimiser, Wrapper
from parse_mpi.agents.rows import SliceRows
from parse_mpi.agents.surgery import row_sums
from parse_mpi.job.dmml import Balance

TINY = 1e-30  # below any norm that matters


class Balanced(Wrapper):
    """An optimiser whose rows leave out a share of their steps, evenly over time.

    State beside the optimiser's own, [A, 1] each: `speed`, the relative change of a row in one step, averaged over the
    rounds, 0 while it is unknown; `skipped`, the share of steps to leave out; `debt`, how much of a step is owed.
    """

    def __init__(self, base: RowOptimiser, options: Balance):
        super().__init__(base)
        self.options = options
        self.scratch = base.scratch + 1
        self._start = self._taken = torch.empty(0)

    def state(self, width: int) -> dict[str, int]:
        return {**super().state(width), "speed": 1, "skipped": 1, "debt": 1}

    def before_round(self, rows: SliceRows) -> None:
        super().before_round(rows)
        self._start = rows.local.clone()
        self._taken = torch.zeros_like(rows.state["speed"])

    def step(self, rows: SliceRows) -> None:
        """A step of those rows that do not owe one; the others stay as they are."""
        debt = rows.state["debt"].add_(rows.state["skipped"])
        owing = debt >= 1
        left = owing.squeeze(1).nonzero().squeeze(1)
        kept = [(matrix, matrix[left]) for matrix in rows.matrices().values()]
        super().step(rows)
        for matrix, before in kept:
            matrix[left] = before
        debt.sub_(owing.to(debt.dtype))
        self._taken += ~owing

    def measure(self, rows: SliceRows) -> None:
        """After the local steps of a round: how fast the rows went."""
        change, size = (row_sums(values.square()).sqrt() for values in (rows.local - self._start, self._start))
        now = change / (self._taken * size).clamp(min=TINY)
        speed = rows.state["speed"]
        average = torch.where(speed > 0, speed.lerp(now, 1 - self.options.decay), now)
        speed.copy_(torch.where(self._taken > 0, average, speed))


class TrainingBalance:
    """What the slices that agents balance against each other have to do with each other.

    slices: each with its optimiser and the local index int64 [rows] of the agent in every row.
    """

    def __init__(
        self,
        slices: Sequence[tuple[Balanced, SliceRows, Tensor]],
        agent_count: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.slices = slices
        self.unknown_A = torch.full((agent_count,), torch.inf, dtype=dtype, device=device)

    def measure(self) -> None:
        """After the local steps of a round: every row is to take steps in proportion to the slowest of its agent."""
        for optimiser, rows, _ in self.slices:
            optimiser.measure(rows)
        slowest_A = self.unknown_A.clone()
        for _, rows, agent in self.slices:
            speed = rows.state["speed"].squeeze(1)
            slowest_A[agent] = torch.minimum(slowest_A[agent], torch.where(speed > 0, speed, torch.inf))
        for optimiser, rows, agent in self.slices:
            speed = rows.state["speed"].squeeze(1)
            share = torch.where(speed > 0, slowest_A[agent] / speed, 1).clamp(min=optimiser.options.least)
            rows.state["skipped"].copy_((1 - share).unsqueeze(1))
