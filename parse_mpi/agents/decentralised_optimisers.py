"""Optimisers that look at what mixing did: QG-DSGDm, gradient tracking and D^2 (docs/method.md, section 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from parse_mpi.agents.local_optimisers import RowOptimiser, decayed_gradients
from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import D2Optimiser, GradientTrackingOptimiser, QuasiGlobalOptimiser


@dataclass(frozen=True)
class QuasiGlobal(RowOptimiser):
    """QG-DSGDm (Lin et al., 2021): momentum follows the way from the start of a round to the mixed rows at its end.

    d = beta m + g, x <- x - lr d in each of H local steps; then m <- mu m + (1 - mu) (x_start - x_mixed) / (lr H).
    """

    scratch = 1

    options: QuasiGlobalOptimiser
    local_steps: int
    _start: dict[str, Tensor] = field(default_factory=dict, init=False)  # rows at the start of the round, by slice

    def state(self, width: int) -> dict[str, int]:
        return {"momentum": width}

    def before_round(self, rows: SliceRows) -> None:
        self._start[rows.name] = rows.local.clone()

    def step(self, rows: SliceRows) -> None:
        o = self.options
        direction = decayed_gradients(rows, o.weight_decay).add_(rows.state["momentum"], alpha=o.beta)
        rows.local.add_(direction, alpha=-o.lr)

    def after_mix(self, rows: SliceRows) -> None:
        mu, length = self.options.mu, self.options.lr * self.local_steps
        way = self._start.pop(rows.name).sub_(rows.local)
        rows.state["momentum"].mul_(mu).add_(way, alpha=(1 - mu) / length)


@dataclass(frozen=True)
class GradientTracking(RowOptimiser):
    """x <- W x - lr y, y <- W y + g - g_before (Di Lorenzo and Scutari, 2016), with y = g at the start.

    The tracker y is the second half of the rows that travel, 0 before the first step as g_before is. Mixing averages
    x and y as they were at the start of the round (order: consensus), so that only y may move in the local step.
    """

    options: GradientTrackingOptimiser

    def state(self, width: int) -> dict[str, int]:
        return {"gradient": width}

    def step(self, rows: SliceRows) -> None:
        g, before = decayed_gradients(rows, self.options.weight_decay), rows.state["gradient"]
        rows.tracker.add_(g).sub_(before)
        before.copy_(g)

    def after_mix(self, rows: SliceRows) -> None:
        rows.local.add_(rows.tracker, alpha=-self.options.lr)


@dataclass(frozen=True)
class D2(RowOptimiser):
    """x <- W (2 x - x_before - lr (g - g_before)) (Tang et al., 2018), and x <- W (x - lr g) in the first round.

    Kept is the correction v = x - x_before + lr g_before. It is 0 at the start, so that both are x <- W (x + v - lr g),
    and it changes by what mixing changes in the rows: v <- v + x_mixed - x_half.
    """

    options: D2Optimiser

    def state(self, width: int) -> dict[str, int]:
        return {"correction": width}

    def step(self, rows: SliceRows) -> None:
        g, correction = decayed_gradients(rows, self.options.weight_decay), rows.state["correction"]
        rows.local.add_(correction).add_(g, alpha=-self.options.lr)
        correction.sub_(rows.local)

    def after_mix(self, rows: SliceRows) -> None:
        rows.state["correction"].add_(rows.local)
