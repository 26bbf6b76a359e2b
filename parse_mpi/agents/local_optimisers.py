"""What the trainer asks of an optimiser, and those that know nothing of neighbours: torch.optim's SGD and AdamW."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import AdamWOptimiser, SgdOptimiser


class RowOptimiser(ABC):
    """Updates all rows of a slice at once. A round calls before_round, `step` H times, before_send, mixing, after_mix.

    With order: consensus, whose rows travel from the start, before_send comes first.
    """

    scratch = 0  # matrices as wide as the rows that it needs within a round, beside its state

    def state(self, width: int) -> dict[str, int]:
        """Columns per row of each matrix that it remembers from round to round, for rows of `width` parameters."""
        return {}

    def before_round(self, rows: SliceRows) -> None:  # noqa: B027 (most have nothing to do here)
        """Look at the rows of a slice before the first local step of a round."""

    @abstractmethod
    def step(self, rows: SliceRows) -> None:
        """One local step of all rows of a slice, from their gradients, which are spoilt by it."""

    def before_send(self, rows: SliceRows) -> None:  # noqa: B027
        """Make ready what of a slice is to travel."""

    def after_mix(self, rows: SliceRows) -> None:  # noqa: B027 (nor here)
        """Finish the round of a slice, once its rows are mixed."""


def decayed_gradients(rows: SliceRows, weight_decay: float) -> Tensor:
    """Gradients [A, P] of the loss plus weight_decay / 2 |x|^2, in the place of those of the loss."""
    return rows.gradients.add_(rows.local, alpha=weight_decay) if weight_decay else rows.gradients


class Rest(RowOptimiser):
    """No step at all: a slice that is not trained."""

    def step(self, rows: SliceRows) -> None:
        pass


class Wrapper(RowOptimiser):
    """Another optimiser with something beside it; a subclass adds to what it needs to."""

    def __init__(self, base: RowOptimiser):
        self.base = base
        self.scratch = base.scratch

    def state(self, width: int) -> dict[str, int]:
        return self.base.state(width)

    def before_round(self, rows: SliceRows) -> None:
        self.base.before_round(rows)

    def step(self, rows: SliceRows) -> None:
        self.base.step(rows)

    def before_send(self, rows: SliceRows) -> None:
        self.base.before_send(rows)

    def after_mix(self, rows: SliceRows) -> None:
        self.base.after_mix(rows)


class Anchored(Wrapper):
    """Another optimiser, beside which every row remembers where it was before its first step."""

    def state(self, width: int) -> dict[str, int]:
        return {**super().state(width), "reference": width}

    def before_round(self, rows: SliceRows) -> None:
        reference = rows.state["reference"]
        new = ~reference.any(1)
        reference[new] = rows.local[new]
        super().before_round(rows)


@dataclass(frozen=True)
class Sgd(RowOptimiser):
    """torch.optim.SGD: m <- mu m + g, then x <- x - lr m, or x <- x - lr (g + mu m) with Nesterov's."""

    options: SgdOptimiser

    def state(self, width: int) -> dict[str, int]:
        return {"momentum": width} if self.options.momentum else {}

    def step(self, rows: SliceRows) -> None:
        o, direction = self.options, decayed_gradients(rows, self.options.weight_decay)
        if o.momentum:
            momentum = rows.state["momentum"].mul_(o.momentum).add_(direction)
            direction = direction.add_(momentum, alpha=o.momentum) if o.nesterov else momentum
        rows.local.add_(direction, alpha=-o.lr)


@dataclass(frozen=True)
class AdamW(RowOptimiser):
    """torch.optim.AdamW. Steps are counted per row, so that an agent that joins later starts as it would alone."""

    options: AdamWOptimiser

    def state(self, width: int) -> dict[str, int]:
        return {"mean": width, "mean_square": width, "steps": 1}

    def step(self, rows: SliceRows) -> None:
        o, g, (beta1, beta2) = self.options, rows.gradients, self.options.betas
        mean = rows.state["mean"].lerp_(g, 1 - beta1)
        square = rows.state["mean_square"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        steps = rows.state["steps"].add_(1).double()  # 1 - beta^steps loses half its digits in float32
        scale = o.lr / _bias_correction(beta1, steps)
        root = _bias_correction(beta2, steps).sqrt()
        rows.local.mul_(1 - o.lr * o.weight_decay)
        denominator = torch.sqrt(square, out=g).div_(root.to(g.dtype)).add_(o.eps)
        rows.local.sub_(torch.div(mean, denominator, out=g).mul_(scale.to(g.dtype)))


def _bias_correction(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)
