"""What one rank works with during one era of a run, and how the next era takes it over."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parse_mpi.agents.group import AgentGroup, local_order
from parse_mpi.agents.samples import AgentSamples, Inputs
from parse_mpi.exchange.adoption import adopt
from parse_mpi.exchange.budget import Budget
from parse_mpi.exchange.clustered import ClusteredExchange
from parse_mpi.exchange.handshake import shake_hands
from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.exchange.neighbourhood import Exchange, GraphExchange
from parse_mpi.exchange.routing import ghost_bound
from parse_mpi.exchange.sheaf import SheafExchange
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import Evaluator
from parse_mpi.topology.slice_graph import SliceGraph


@dataclass(frozen=True)
class Assembly:
    """The agents of this rank, the exchanges of all graphs, and the evaluator, as one era needs them."""

    plan: Plan
    inputs: Inputs
    group: AgentGroup
    budget: Budget | None
    averaging: list[GraphExchange | ClusteredExchange]
    couplings: list[SheafExchange]
    evaluator: Evaluator

    @property
    def exchanges(self) -> list[Exchange]:
        """Of all graphs."""
        return [*self.averaging, *self.couplings]

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
    averaged, tied = plan.averaged_graphs, plan.coupled_graphs
    averaging = [_averaging(world, plan, graph, group, k, budget) for k, graph in enumerate(averaged)]
    couplings = [
        SheafExchange(world, plan, graph, group.slices, k) for k, graph in enumerate(tied, start=len(averaged))
    ]
    return Assembly(plan, inputs, group, budget, averaging, couplings, Evaluator(plan, group, inputs))


def _averaging(
    world: World, plan: Plan, graph: SliceGraph, group: AgentGroup, index: int, budget: Budget | None
) -> GraphExchange | ClusteredExchange:
    """The exchange of a graph whose slices are averaged; index: of the graph among all."""
    if graph.clusters > 1:
        return ClusteredExchange(world, plan, graph, group.slices, index)
    schedule = budget.schedule(graph) if budget else WholeRows(plan, graph)
    return GraphExchange(world, plan, graph, group.slices, index, schedule)


def succeed(world: World, old: Assembly, plan: Plan) -> Assembly:
    """The assembly of the next era: who keeps a slice keeps its row, a newcomer starts from a neighbour's."""
    old.free()
    new = assemble(world, plan, old.inputs, old.group.device)
    new.group.take_over(old.group)
    if new.budget and old.budget:
        new.budget.weights = old.budget.weights
    for before, coupling in zip(old.couplings, new.couplings, strict=True):
        coupling.take_over(before)
    adopt(world, old.plan, plan, new.group.slices)
    return new
