"""Inside ranks: mixing within a budget per link, against the dense matrix of every column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from budget_cases import all_lanes, draw_network, draw_values, effective, least_bytes, row_bytes
from mixing_cases import KINDS, gathered, lay_out
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.exchange.budget import Budget
from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan

ROUNDS = 4
WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)
URGENCY = {"a, slice 0": 0.125, "all agents, slice 1": 0.5}

pytestmark = pytest.mark.mpi


class Network:
    """The exchanges of all graphs of a plan within one budget; None: without."""

    def __init__(self, world: World, plan: Plan, values: Mapping[str, NDArray[np.float64]], share: float | None):
        self.world, self.plan = world, plan
        self.rows = lay_out(world, plan, values, seed=world.size, apart=True)
        if share is not None:
            least = least_bytes(plan)
            self.budget = Budget(plan, int(least + share * (row_bytes(plan) - least)))
            self.budget.weights = URGENCY
        self.exchanges = [
            GraphExchange(
                world, plan, g, self.rows, k, WholeRows(plan, g) if share is None else self.budget.schedule(g)
            )
            for k, g in enumerate(plan.graphs.values())
        ]

    def round(self, round_index: int) -> None:
        """All graphs in flight at once, as in a round of training, whose steps add a number to every row."""
        for exchange in self.exchanges:
            exchange.start(round_index)
        for name, rows in self.rows.items():
            rows.local += torch.from_numpy(learnt(name, round_index) * (1.0 + rows.agents[:, None]))
            rows.gradients.fill_(torch.nan)
        for phase in ("mix_interior", "wait", "mix_boundary"):
            for exchange in self.exchanges:
                getattr(exchange, phase)()

    def values(self) -> dict[str, NDArray[np.float64]]:
        return gathered(self.world, self.plan, self.rows)

    def free(self) -> None:
        for exchange in self.exchanges:
            exchange.free()


def learnt(name: str, round_index: int) -> float:
    return 0.01 * (len(name) + round_index)


def networks(every: int = 1) -> Iterator[tuple[Plan, Plan, dict[str, NDArray[np.float64]]]]:
    """The same network on these ranks, over both transports in turn, and on one rank; and its rows.

    every: take each so-many-th kind of graph only.
    """
    for k, kind in enumerate(KINDS[::every]):
        plan = draw_network(kind, k, WORLD.size, via=("neighbour", "p2p")[k % 2])
        yield plan, draw_network(kind, k), draw_values(plan, k)


def test_budgeted_mixing_is_the_dense_product_column_by_column() -> None:
    for plan, _, values in networks():
        network, exact = Network(WORLD, plan, values, 0.2), dict(values)
        for r in range(ROUNDS):
            network.round(r)
            lanes = all_lanes(network.budget, r)
            for spec in plan.slices:
                W = plan.graphs[spec.graph].at(r).dense()
                made = effective(lanes[spec.graph], spec.name, plan.layouts[spec.name].width, W)
                mixed = np.einsum("pij,jp->ip", made, exact[spec.name])
                exact[spec.name] = mixed + learnt(spec.name, r) * (1.0 + np.array(spec.holders)[:, None])
        for name, x in network.values().items():
            assert np.linalg.norm(x - exact[name]) <= 1e-13 * np.linalg.norm(exact[name]), (plan, name)
        network.free()


def test_a_budget_leaves_the_bits_of_one_rank() -> None:
    for plan, single, values in networks(every=2):
        network, reference = Network(WORLD, plan, values, 0.2), Network(ALONE, single, values, 0.2)
        for r in range(ROUNDS):
            network.round(r)
            reference.round(r)
        for name, x in network.values().items():
            assert x.tobytes() == reference.values()[name].tobytes(), name
        network.free()
        reference.free()


def test_a_budget_that_is_never_exceeded_leaves_the_bits_of_whole_rows() -> None:
    for plan, _, values in networks(every=3):
        within, without = Network(WORLD, plan, values, 1.0), Network(WORLD, plan, values, None)
        for r in range(ROUNDS):
            within.round(r)
            without.round(r)
        for name, x in within.values().items():
            assert x.tobytes() == without.values()[name].tobytes(), name
        within.free()
        without.free()


def test_bytes_on_links_and_bytes_that_wait_add_up() -> None:
    """And what ranks send each other is never more than what their agents send, nor is it more than the budget."""
    for plan, _, values in networks(every=3):
        network = Network(WORLD, plan, values, 0.1)
        for r in range(ROUNDS):
            network.round(r)
            for exchange in network.exchanges:
                links = exchange.graph.at(r).links()
                waiting = exchange.waiting_bytes(r)
                payload = exchange.payload_bytes()
                for spec in plan.slices:
                    if spec.graph == exchange.graph.name:
                        whole = len(links) * plan.layouts[spec.name].width * plan.item_bytes
                        assert payload.get(spec.name, 0) + waiting.get(spec.name, 0) == whole
                sent = sum(sum(by_peer.values()) for by_peer in exchange.sent_bytes().values())
                ends = plan.rank_of[links].reshape(-1, 2)
                remote = int(((ends[:, 0] == WORLD.rank) & (ends[:, 1] != WORLD.rank)).sum())
                assert sent <= remote * network.budget.columns * plan.item_bytes
                assert (sent > 0) <= (remote > 0)
        network.free()
