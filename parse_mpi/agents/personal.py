"""What agents take of their neighbours' mean, parameter by parameter: FedALA's rule (docs/method.md, section 4).

Shapes: A local agents, R rows of a slice, B batch, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.data.sampler import LabelledSampler
from parse_mpi.job import LearntWeights
from parse_mpi.methods.base import Method, SliceSpec

KEPT = 2  # matrices as wide as the rows that are kept during a round: the rows before and after mixing
WINDOW = 10  # losses whose spread says whether the first phase is over
FIRST_PHASE = 1  # index of the round that it is in
STATISTICS = ("mean", "spread", "zeros", "ones")

Gradients = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Personal:
    """A slice of which agents take a part of the mean.

    agent: local index int64 [R] of the agent in every row. own, mixed: the rows before and after mixing [R, P].
    weights: what is taken, 0 to 1 [R, P]; a matrix of the rows' state where agents learn it.
    """

    rows: SliceRows
    agent: Tensor
    own: Tensor
    mixed: Tensor
    weights: Tensor

    def blend(self) -> None:
        """Rows become own + (mixed - own) * weights, exactly own at 0 and mixed at 1."""
        torch.lerp(self.own, self.mixed, self.weights, out=self.rows.local)


def weight_state(method: Method, spec: SliceSpec, width: int) -> dict[str, int]:
    """What rows of `width` parameters remember for it, as RowOptimiser.state."""
    return {"taken": width} if spec.personal and isinstance(method.weights, LearntWeights) else {}


class PersonalAggregation:
    """Holds rows back while neighbours mix them, then takes of the mixture what the weights say.

    sampler: batches of labelled samples. All of it works row by row: agents never meet here.
    """

    def __init__(
        self, weights: LearntWeights | float, slices: Sequence[tuple[SliceRows, Tensor]], sampler: LabelledSampler
    ):
        """slices: rows with the local index of the agent in each."""
        self.options = weights
        self.sampler = sampler
        self.slices = []
        for rows, agent in slices:
            own, mixed = torch.empty_like(rows.local), torch.empty_like(rows.local)
            if isinstance(weights, LearntWeights):
                taken = rows.state["taken"].fill_(1)
            else:
                taken = torch.full_like(rows.local[:1, :1], weights)
            self.slices.append(Personal(rows, agent, own, mixed, taken))

    def hold(self) -> None:
        """Keep the rows as agents have learnt them."""
        for part in self.slices:
            part.own.copy_(part.rows.local)

    def take(self, round_index: int, gradients: Gradients) -> None:
        """Once rows are mixed: learn weights where the job says so, and take that part of the mixture.

        gradients: fills the gradient rows for a batch, positions [A, B] and mask [A, B], and returns the loss [A].
        """
        for part in self.slices:
            part.mixed.copy_(part.rows.local)
            part.blend()
        if isinstance(self.options, LearntWeights):
            self._learn(self.options, round_index, gradients)

    def _learn(self, options: LearntWeights, round_index: int, gradients: Gradients) -> None:
        """The weight steps of a round; in the first phase each agent ends its own when its losses have settled."""
        device = self.slices[0].own.device
        learns_A = torch.ones(len(self.sampler.agents), dtype=torch.bool, device=device)
        losses: list[Tensor] = []
        for step in range(options.most_steps(round_index + 1) - options.most_steps(round_index)):
            position, mask = (torch.from_numpy(a).to(device) for a in self.sampler.batch(round_index, step))
            losses.append(gradients(position, mask))
            self._step(options.rate, learns_A & torch.isfinite(losses[-1]))
            if round_index == FIRST_PHASE:
                learns_A &= ~_settled(losses[-WINDOW:], options.steady)
                if not bool(learns_A.any()):
                    break

    def _step(self, rate: float, learns_A: Tensor) -> None:
        """w <- clip(w - rate dL/dx * (mixed - own), 0, 1) of agents that learn and whose gradient is finite."""
        for part in self.slices:
            learns_A[part.agent] &= torch.isfinite(part.rows.gradients).all(1)
        for part in self.slices:
            slope = part.rows.gradients.mul_(part.mixed - part.own).mul_(rate)  # in this order 0 stays 0
            stepped = (part.weights - slope).clamp_(0, 1)
            part.weights.copy_(torch.where(learns_A[part.agent].unsqueeze(1), stepped, part.weights))
            part.blend()

    def mixed(self, name: str) -> Tensor:
        """Rows of a slice [R, P] as mixing left them in the last round."""
        return next(part.mixed for part in self.slices if part.rows.name == name)

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """Of every slice, by name: mean and standard deviation of an agent's weights, and their shares at 0 and at 1.

        float64 [A, 4]; nan where an agent lacks the slice.
        """
        found = {}
        for part in self.slices:
            table = found[part.rows.name] = np.full((len(self.sampler.agents), len(STATISTICS)), np.nan)
            for agent, row in zip(part.agent.tolist(), part.weights.double().cpu().numpy(), strict=True):
                table[agent] = row.mean(), row.std(), (row == 0).mean(), (row == 1).mean()
        return found


def _settled(losses: Sequence[Tensor], steady: float) -> Tensor:
    """Whether the standard deviation of the last losses [A] is below `steady`, once there are enough: bool [A]."""
    if len(losses) < WINDOW:
        return torch.zeros_like(losses[0], dtype=torch.bool)
    mean = sum(losses, torch.zeros_like(losses[0])) / WINDOW  # one operation after another, the same bits for any A
    squares = sum(((loss - mean).square() for loss in losses), torch.zeros_like(mean))
    return (squares / WINDOW).sqrt() < steady
