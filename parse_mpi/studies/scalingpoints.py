"""What the points of a scaling study come to: medians over rounds and repeats, speed-up and efficiency by curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parse_mpi.scaling.scalingfile import Measured, Scaling


@dataclass(frozen=True)
class PointSummary:
    """A point of a curve, all of its repeats together.

    round_s, low_s, high_s: median and quartiles of what a round takes the slowest rank, without evaluation, records and
    checkpoints. phase_s: mean seconds a round by phase, over rounds and ranks. speed_up, efficiency: against the first
    point of its curve. hidden: share of the time that rows travelled in which nobody waited for them; nan where none
    did. round_bytes: that all ranks send to others; messages, busiest_bytes: of the rank that sends most.
    peak_bytes: of the largest rank.
    """

    curve: str
    ranks: int
    nodes: int
    agents: int
    launches: int
    rounds: int
    round_s: float
    low_s: float
    high_s: float
    phase_s: dict[str, float]
    speed_up: float
    efficiency: float
    hidden: float
    round_bytes: float
    busiest_bytes: float
    messages: float
    peak_bytes: int
    crowded: bool


def summaries(scaling: Scaling) -> dict[str, list[PointSummary]]:
    """Every curve with what was measured of it, in the order of its points."""
    found: dict[str, list[PointSummary]] = {curve: [] for curve in scaling.kinds}
    for (curve, ranks, nodes, agents), results in scaling.points().items():
        rounds = np.concatenate([result.round_seconds() for result in results])
        first = found[curve][0] if found[curve] else None
        round_s = float(np.median(rounds))
        gain = first.round_s / round_s if first else 1.0
        speed_up, efficiency = _against(scaling.kinds[curve], first, gain, ranks, agents)
        low, high = np.quantile(rounds, (0.25, 0.75))
        sent = np.concatenate([result.sent_bytes for result in results])
        loads = results[0].loads
        found[curve].append(
            PointSummary(
                curve=curve,
                ranks=ranks,
                nodes=nodes,
                agents=agents,
                launches=len(results),
                rounds=len(rounds),
                round_s=round_s,
                low_s=float(low),
                high_s=float(high),
                phase_s=mean_phases(results),
                speed_up=speed_up,
                efficiency=efficiency,
                hidden=hidden_share(results),
                round_bytes=float(sent.sum(1).mean()),
                busiest_bytes=float(sent.mean(0).max()),
                messages=float((loads.messages_within + loads.messages_between).max()),
                peak_bytes=int(max(result.peak_bytes.max() for result in results)),
                crowded=any(is_crowded(result) for result in results),
            )
        )
    return {curve: points for curve, points in found.items() if points}


def mean_phases(results: Sequence[Measured]) -> dict[str, float]:
    """Mean seconds a round by phase, over all rounds and ranks of all launches."""
    phases = dict.fromkeys(name for result in results for name in result.phase)
    return {name: float(np.concatenate([r.of(name).ravel() for r in results]).mean()) for name in phases}


def hidden_share(results: Sequence[Measured]) -> float:
    """Of the time that rows were under way, what no rank spent waiting for them."""
    if results[0].node_of.size == 1:
        return float("nan")
    travel = sum(float(result.travel_seconds.sum()) for result in results)
    wait = sum(float(result.of("wait").sum()) for result in results)
    return 1.0 - wait / travel if travel else float("nan")


def is_crowded(result: Measured) -> bool:
    """Whether a host had more compute threads than cores."""
    threads = np.bincount(result.node_of, weights=result.threads)
    return bool((threads[result.node_of] > result.host_cores).any())


def _against(kind: str, first: PointSummary | None, gain: float, ranks: int, agents: int) -> tuple[float, float]:
    """Speed-up in agents a second, and what it is of the ideal: more ranks, or, on one rank, time in proportion."""
    if first is None:
        return 1.0, 1.0
    speed_up = gain * agents / first.agents
    return speed_up, speed_up / (ranks / first.ranks if kind != "group" else 1.0)
