"""What one rank works with during one era of a run, and how the next era takes it over."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parse_mpi.agents.group import AgentGroup, local_order
from parse_mpi.agents.samples import AgentSamples, Inputs
from parse_mpi.exchange.adoption import adopt
from parse_mpi.exchange.budget import Budget
from parse_mpi.exchange.handshake import shake_hands
from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.routing import ghost_bound
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import Evaluator


@dataclass(frozen=True)
class Assembly:
    """The agents of this rank, the exchanges of all graphs, and the evaluator, as one era needs them."""

    plan: Plan
    inputs: Inputs
    group: AgentGroup
    budget: Budget | None
    exchanges: list[GraphExchange]
    evaluator: Evaluator

    def free(self) -> None:
        """Give the communicators back; all ranks call it together."""
        for exchange in self.exchanges:
            exchange.free()


def assemble(world: World, plan: Plan, inputs: Inputs, device: torch.device) -> Assembly:
    """Samples, agents at their initial values, and exchanges for the era of `plan`; all ranks call it together."""
    shake_hands(world, plan)
    agents = local_order(plan, world.rank)
    bounds = {name: ghost_bound(graph, plan.rank_of, world.rank) for name, graph in plan.graphs.items()}
    ghosts = {spec.name: bounds[spec.graph] for spec in plan.slices if spec.graph}
    group = AgentGroup(plan, world.rank, ghosts, AgentSamples(agents, inputs, device), device)
    limit = plan.job.exchange.budget_bytes_per_link
    budget = Budget(plan, limit) if limit else None
    exchanges = [
        GraphExchange(world, plan, graph, group.slices, k, budget.schedule(graph) if budget else WholeRows(plan, graph))
        for k, graph in enumerate(plan.graphs.values())
    ]
    return Assembly(plan, inputs, group, budget, exchanges, Evaluator(plan, group, inputs))


def succeed(world: World, old: Assembly, plan: Plan) -> Assembly:
    """The assembly of the next era: who keeps a slice keeps its row, a newcomer starts from a neighbour's."""
    old.free()
    new = assemble(world, plan, old.inputs, old.group.device)
    new.group.take_over(old.group)
    if new.budget and old.budget:
        new.budget.weights = old.budget.weights
    adopt(world, old.plan, plan, new.group.slices)
    return new
