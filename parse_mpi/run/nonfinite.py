"""Agents whose loss or gradient is not finite: who they are, and the run without them (docs/method.md, section 1.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parse_mpi.agents.group import AgentGroup
from parse_mpi.errors import NonFiniteError
from parse_mpi.exchange.world import World
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.plan import Plan
from parse_mpi.planproblems import broken_graphs

MOST_NAMED = 6


@dataclass(frozen=True)
class Diverged:
    """The agents, ascending, whose values were not finite in the round that ended as `done`, and a line on each."""

    done: int
    agents: tuple[int, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        more = f"; and {len(self.lines) - MOST_NAMED} more" if len(self.lines) > MOST_NAMED else ""
        return f"round {self.done}: not finite: {'; '.join(self.lines[:MOST_NAMED])}{more}"


def find_diverged(world: World, group: AgentGroup, losses: Tensor, finite: Tensor, done: int) -> Diverged:
    """From mean loss terms [A, T] and finite bool [A] of the local agents; all ranks call it together."""
    mine = []
    for k in torch.nonzero(~finite).flatten().tolist():
        terms = [term for t, term in enumerate(LOSS_TERMS) if not bool(torch.isfinite(losses[k, t]))]
        what = f"loss {', '.join(terms[1:] or terms)}" if terms else "gradient or parameters"
        mine.append([group.agents[k].id, f"({group.agents[k].kind}, rank {world.rank}): {what}"])
    found = sorted(one for of_rank in world.all_json(mine) for one in of_rank)
    return Diverged(done, tuple(i for i, _ in found), tuple(f"agent {i} {what}" for i, what in found))


def plan_without(plan: Plan, lost: Diverged) -> Plan:
    """The plan once these agents are cut off too. Raises NonFiniteError where the job says stop, or nobody is left."""
    if plan.job.train.on_nonfinite == "stop":
        can_go_on = not plan.job.train.optimiser.needs_everything
        or_else = "; or go on without these agents: the same command with --set train.on_nonfinite=isolate"
        raise NonFiniteError(
            f"{lost}.\nThese agents kept their last finite parameters, and the newest checkpoint is sound. Lower "
            "train.optimiser.lr or method.beta, or look for extreme values in the data, then start again with --fresh"
            f"{or_else if can_go_on else ''}."
        )
    try:
        return plan.without([*plan.isolated, *((lost.done, agent) for agent in lost.agents)])
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{lost}.\nThe run can't go on without these agents: {error}. Lower train.optimiser.lr or method.beta, or "
            "look for extreme values in the data, then start again with --fresh."
        ) from error


def newly_broken(before: Plan, after: Plan, done: int) -> Iterator[str]:
    """Graphs from round `done` on that fall apart for want of the agents that were cut off, in words."""
    if after.job.topology.allow_disconnected:
        return
    for era in after.eras:
        if era.start >= done:
            broken = {name for name, graph in before.at(era.start).graphs.items() if graph.disconnected_groups()}
            yield from broken_graphs([graph for name, graph in era.graphs.items() if name not in broken], era.start)
