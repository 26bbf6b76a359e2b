"""What each rank has to do in a round, counted from the plan: work, bytes that mixing moves, messages and bytes sent.

Nothing is run and no MPI is needed; tests compare the messages and bytes with those of real runs. Of rounds that
differ the mean over the first ones is taken. Where agents mix in clusters that show in mid-run only, groups count as
undivided.

Shapes: K ranks, E links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.sampler import widest_batch
from parse_mpi.exchange.budget import Budget, GraphBudget
from parse_mpi.exchange.lanes import Lane, WholeRows
from parse_mpi.plan import Plan
from parse_mpi.topology.slice_graph import SliceGraph

Numbers = NDArray[np.float64]
ROUNDS = 24  # that are averaged where rounds differ


@dataclass(frozen=True, eq=False)
class Loads:
    """Of every rank in a round, each [K].

    agents: that it hosts. work: samples times parameters that they learn with, over all local steps. moved_bytes: rows
    that mixing reads, and that are packed or laid behind the local ones. messages, bytes: sent to ranks of the same
    node (within) and of others (between); a row once for each rank that needs it.
    """

    agents: Numbers
    work: Numbers
    moved_bytes: Numbers
    messages_within: Numbers
    bytes_within: Numbers
    messages_between: Numbers
    bytes_between: Numbers

    def table(self) -> Numbers:
        """All of it, [K, load] in the order of LOADS."""
        return np.stack([getattr(self, name) for name in LOADS], axis=1)

    @staticmethod
    def of(table: Numbers) -> Loads:
        """From what `table` gave."""
        return Loads(*table.T)


LOADS = tuple(field.name for field in fields(Loads))


def rank_loads(plan: Plan, rank_of: NDArray[np.int64], node_of: NDArray[np.int64]) -> Loads:
    """The loads of the first era. rank_of: rank of each agent; node_of [K]: node of each rank."""
    ranks = len(node_of)
    agents, work = _work(plan, rank_of, ranks)
    moved, messages, sent = np.zeros(ranks), np.zeros((2, ranks)), np.zeros((2, ranks))
    schedules = {graph.name: _schedule(plan, graph) for graph in plan.averaged_graphs}
    rounds = counted_rounds(plan)
    for graph in plan.averaged_graphs:
        for round_index in range(rounds):
            for lane in schedules[graph.name].lanes(round_index):
                _add_lane(lane, plan.item_bytes, rank_of, node_of, moved, messages, sent)
    for graph in plan.coupled_graphs:
        for round_index in range(rounds):
            links = rank_of[graph.at(round_index).links()]
            _add_traffic(links, plan.message_bytes(graph.name), node_of, messages, sent)
    within, between = 0, 1
    return Loads(
        agents, work, moved / rounds, messages[within] / rounds, sent[within] / rounds, messages[between] / rounds,
        sent[between] / rounds,
    )  # fmt: skip


def _work(plan: Plan, rank_of: NDArray[np.int64], ranks: int) -> tuple[Numbers, Numbers]:
    """Agents and work of every rank."""
    parameters = np.zeros(len(plan.agents))
    for spec in plan.slices:
        parameters[list(spec.holders)] += plan.layouts[spec.name].width
    here = np.array([bool(agent.modalities) for agent in plan.agents])
    train, streamed = plan.job.train, plan.job.data.stream is not None
    samples = widest_batch(plan.sizes(), train.batch_size, streamed) * train.local_steps
    work = np.where(here, parameters * samples, 0.0)
    agents, total = (np.bincount(rank_of, weights=weights, minlength=ranks) for weights in (here, work))
    return agents.astype(np.float64), total.astype(np.float64)


def _schedule(plan: Plan, graph: SliceGraph) -> WholeRows | GraphBudget:
    limit = plan.job.exchange.budget_bytes_per_link
    return Budget(plan, limit).schedule(graph) if limit else WholeRows(plan, graph)


def counted_rounds(plan: Plan) -> int:
    """How many rounds show all that can happen."""
    if plan.job.exchange.budget_bytes_per_link or any(graph.phases == 0 for graph in plan.graphs.values()):
        return ROUNDS
    repeats = [graph.phases for graph in plan.graphs.values()] + [spec.every for spec in plan.slices]
    return min(math.lcm(*repeats), ROUNDS) if repeats else 1


def _add_lane(
    lane: Lane, item_bytes: int, rank_of: NDArray[np.int64], node_of: NDArray[np.int64], moved: Numbers,
    messages: Numbers, sent: Numbers,
) -> None:  # fmt: skip
    """Count what a lane has the ranks do: each link reads a row where it is received, each row that travels is packed
    once and laid down once."""
    row_bytes = lane.width * item_bytes
    links = lane.matrix.links()
    receiver = rank_of[links[:, 1]]
    moved += row_bytes * np.bincount(receiver, minlength=len(moved))
    remote = rank_of[links[:, 0]] != receiver
    rows = np.unique(links[remote, 0] * len(moved) + receiver[remote])  # a row once for each rank
    ends = np.stack([rank_of[rows // len(moved)], rows % len(moved)], axis=1)
    for end in ends.T:
        moved += row_bytes * np.bincount(end, minlength=len(moved))
    _add_traffic(ends, row_bytes, node_of, messages, sent)


def _add_traffic(
    ends: NDArray[np.int64], row_bytes: int, node_of: NDArray[np.int64], messages: Numbers, sent: Numbers
) -> None:
    """Count rows between ranks (sender, receiver) [E, 2]; rows to one rank are one message."""
    ends = ends[ends[:, 0] != ends[:, 1]]
    pairs, rows = np.unique(ends, axis=0, return_counts=True)
    is_between = (node_of[pairs[:, 0]] != node_of[pairs[:, 1]]).astype(int)
    np.add.at(messages, (is_between, pairs[:, 0]), 1)
    np.add.at(sent, (is_between, pairs[:, 0]), rows * row_bytes)
