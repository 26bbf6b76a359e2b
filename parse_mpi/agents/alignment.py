"""How much the alignment term weighs for each agent, round by round (docs/method.md, section 1.3).

Shape: A local agents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from parse_mpi.job.method import AdaptiveBeta, BetaSchedule, WarmUpBeta


class AlignmentWeights:
    """The weights beta_i of the local agents. base: what the method gives each agent, before the schedule.

    state: what belongs to the agents and outlives a round, by name: float64 [A, columns] each. `alignment_balance` is
    the moving average of |grad L_cls| / |grad L_con|, which starts at 1: the weight as the job says it.
    """

    def __init__(self, base: Sequence[float], schedule: BetaSchedule, dtype: torch.dtype, device: torch.device):
        self.schedule = schedule
        self.base_A = torch.tensor(base, dtype=dtype, device=device)
        self.state: dict[str, Tensor] = {}
        if isinstance(schedule, AdaptiveBeta):
            self.state["alignment_balance"] = torch.ones(len(base), 1, dtype=torch.float64, device=device)

    def current(self, round_index: int) -> Tensor:
        """The weights [A] in round `round_index`, counted from 0."""
        if isinstance(self.schedule, WarmUpBeta):
            return self.base_A * min(1.0, round_index / self.schedule.rounds)
        if isinstance(self.schedule, AdaptiveBeta):
            return self.base_A * self.state["alignment_balance"].squeeze(1).to(self.base_A.dtype)
        return self.base_A

    def measures(self, round_index: int) -> bool:
        """Whether this round begins with a measurement of the gradients."""
        return isinstance(self.schedule, AdaptiveBeta) and round_index % self.schedule.every == 0

    def observe(self, norms: Tensor) -> None:
        """Take the norms of both gradients [A, 2]; where one of them is 0 or not finite, all stays as it is."""
        if not isinstance(self.schedule, AdaptiveBeta):
            raise TypeError("only an adaptive schedule measures gradients")
        balance, decay, limit = self.state["alignment_balance"], self.schedule.decay, self.schedule.limit
        ratio = norms[:, :1].double() / norms[:, 1:].double()
        known = torch.isfinite(ratio) & (ratio > 0)
        moved = decay * balance + (1 - decay) * ratio.clamp(1 / limit, limit)
        balance.copy_(torch.where(known, moved, balance))
