"""Budgets: what a link carries in a round, column by column, for every kind of graph."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from budget_cases import all_lanes, carried, draw_network, effective, least_bytes, row_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing_cases import KINDS, stub_plan
from numpy.typing import NDArray

from parse_mpi.exchange.budget import Budget, split_by_load
from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.job import Topology
from parse_mpi.plan import Plan
from parse_mpi.topology.slice_graph import slice_graph

kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 30)
rounds = st.one_of(st.integers(0, 40), st.integers(10**6, 10**6 + 100))
shares = st.floats(0.0, 1.0)


def make(plan: Plan, share: float, urgent: int = 0) -> Budget:
    """A budget between the smallest that is allowed and one row; `urgent`: weights drawn from this seed, 0 for none."""
    least = least_bytes(plan)
    budget = Budget(plan, int(least + share * (row_bytes(plan) - least)))
    if urgent:
        draw = np.random.default_rng(urgent)
        budget.reweigh({(spec.name, spec.holders): float(d) for spec in plan.slices for d in draw.exponential(size=1)})
    return budget


@given(kinds, seeds, rounds, shares, st.integers(0, 3))
@settings(max_examples=60)
def test_no_link_carries_more_than_the_budget_and_no_column_twice(
    kind: dict[str, object], seed: int, round_index: int, share: float, urgent: int
) -> None:
    plan = draw_network(kind, seed)
    budget = make(plan, share, urgent)
    count = carried(plan, budget, round_index)
    assert all(times.max(initial=0) <= 1 for times in count.values())
    by_link = sum(times.sum(2) for times in count.values())
    assert by_link.max(initial=0) <= budget.columns
    active = {tuple(link) for graph in budget.graphs for link in graph.at(round_index).links().tolist()}
    assert set(zip(*np.nonzero(by_link), strict=True)) <= active


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_the_budget_is_used_up_where_links_carry_more(seed: int, share: float) -> None:
    """On average over rounds, all but what rounding may cost: a column of each slice."""
    plan = draw_network({"kind": "complete"}, seed)
    budget = make(plan, share)
    used = sum(sum(times.sum(2) for times in carried(plan, budget, r).values()) for r in range(40)) / 40
    for sender, receiver in plan.graphs["all agents"].links().tolist():
        loaded = [s.name for s in plan.slices if {sender, receiver} <= set(s.holders)]
        row = sum(plan.layouts[name].width for name in loaded)
        assert used[sender, receiver] >= min(row, budget.columns - len(loaded)) - 1.0


@given(kinds, seeds, rounds, shares, st.integers(0, 3))
@settings(max_examples=60)
def test_the_matrix_of_every_column_is_doubly_stochastic(
    kind: dict[str, object], seed: int, round_index: int, share: float, urgent: int
) -> None:
    """And between two agents it has the weight of W or 0."""
    plan = draw_network(kind, seed)
    lanes = all_lanes(make(plan, share, urgent), round_index)
    for spec in plan.slices:
        W = plan.graphs[spec.graph].at(round_index).dense()
        made = effective(lanes[spec.graph], spec.name, plan.layouts[spec.name].width, W)
        assert np.abs(made.sum(1) - 1).max() <= 1e-12
        assert np.abs(made.sum(2) - 1).max() <= 1e-12
        assert made.min() >= min(0.0, W.min()) - 1e-12
        apart = ~np.eye(len(W), dtype=bool)
        assert (np.isclose(made, W, atol=1e-12) | (made == 0))[:, apart].all()


@given(kinds, seeds, st.sampled_from([1.0, 1.5]), st.integers(0, 3))
def test_a_budget_as_large_as_the_row_changes_nothing(
    kind: dict[str, object], seed: int, factor: float, urgent: int
) -> None:
    """The same matrix and the same windows, so that every bit is as without a budget, and nothing waits."""
    plan = draw_network(kind, seed)
    budget = make(plan, factor, urgent)
    for graph in plan.graphs.values():
        for r in range(3):
            made, whole = budget.schedule(graph).lanes(r), WholeRows(plan, graph).lanes(r)
            if not len(graph.at(r).neighbours):
                assert made == []
                continue
            assert [lane.windows for lane in made] == [lane.windows for lane in whole]
            if graph.phases:
                assert made[0].matrix is whole[0].matrix
            assert made[0].matrix.dense().tobytes() == whole[0].matrix.dense().tobytes()
            assert set(budget.schedule(graph).waiting(r).values()) <= {0}


@pytest.mark.parametrize("urgent", [0, 1])
@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "ring"},
        {"kind": "one-peer-exponential"},
        {"kind": "static-exponential", "directed": True},
        {"kind": "base-k", "k": 1},
        {"kind": "base-k", "k": 2},
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)
def test_every_column_crosses_every_link_again_and_again(kind: dict[str, object], urgent: int) -> None:
    """Graphs with cycles of different lengths, whose links belong to other graphs in some rounds and not in others.

    No column waits longer than 2 P / s turns, s being the smallest share that its slice gets; a turn is as many rounds
    as the graph has phases.
    """
    several = 0
    for seed in range(4):
        plan = draw_network(kind, seed)
        budget = make(plan, 0.3, urgent)
        several += len({graph.phases for graph in budget.graphs}) > 1
        found = longest_waits(plan, budget, 600)
        least = smallest_shares(budget)
        for spec in plan.slices:
            graph, width = plan.graphs[spec.graph], plan.layouts[spec.name].width
            for sender, receiver in graph.links().tolist():
                bound = graph.phases * (2 * width / least[spec.name] + 2)
                assert bound < 600, "the test would see nothing"
                assert found[spec.name][sender, receiver].max() <= bound
    assert several or kind["kind"] not in ("one-peer-exponential", "base-k")


def longest_waits(plan: Plan, budget: Budget, rounds: int) -> dict[str, NDArray[np.int64]]:
    """Slice -> [sender, receiver, column]: the most rounds from one crossing to the next."""
    last = {name: np.full(times.shape, -1) for name, times in carried(plan, budget, 0).items()}
    longest = {name: np.zeros_like(times) for name, times in last.items()}
    for r in range(rounds + 1):
        for name, times in carried(plan, budget, r).items():
            here = times > 0 if r < rounds else np.ones_like(times, bool)
            longest[name][here] = np.maximum(longest[name], r - last[name])[here]
            last[name][here] = r
    return longest


def smallest_shares(budget: Budget) -> dict[str, float]:
    """The smallest share that each slice gets, over all rounds of all cycles and all links."""
    least: dict[str, float] = {}
    for r in range(math.lcm(*(graph.phases for graph in budget.graphs))):
        for parts in split_by_load({graph.name: graph.at(r) for graph in budget.graphs}).values():
            for load in parts:
                for name, share in budget._shares(load).items():
                    least[name] = min(share, least.get(name, share))
    return least


def test_random_gossip_brings_every_column_over_every_link() -> None:
    plan = draw_network({"kind": "random-gossip"}, 4)
    assert len(plan.graphs["all agents"].links()) > 20
    budget = make(plan, 0.3)
    total = carried(plan, budget, 0)
    for r in range(1, 1200):
        for name, times in carried(plan, budget, r).items():
            total[name] += times
    for spec in plan.slices:
        sender, receiver = plan.graphs[spec.graph].links().T
        assert (total[spec.name][sender, receiver] > 0).all()


@pytest.mark.parametrize("first", [0, 10**6])
def test_rotation_lets_all_columns_travel_equally_often(first: int) -> None:
    """All columns of all slices, narrow and wide, within three times of each other in 2,000 rounds."""
    budget = one_graph({"wide": 997, "narrow": 20, "tiny": 1}, 106)
    count: Counter[tuple[str, int]] = Counter()
    for r in range(first, first + 2000):
        count.update((n, c) for n, a, b in all_lanes(budget, r)["graph"][0].windows for c in range(a, b))
    assert len(count) == 1018
    expected = 2000 * (106 - 3) / 1018
    assert all(abs(times - expected) <= 3 for times in count.values())


def test_priority_follows_the_weights_and_starves_nobody() -> None:
    """Shares go with width times weight; who would get more than the whole row leaves the rest to the others."""
    budget = one_graph({"calm": 1000, "wild": 1000, "narrow": 10}, 203)
    everywhere = (0, 1, 2)
    budget.reweigh(
        {("calm", everywhere): 0.25, ("wild", (0, 1)): 0.1, ("wild", (2,)): 1.0, ("narrow", everywhere): 1e-9}
    )
    assert budget.weights == {"calm": 0.25, "wild": 1.0, "narrow": 1 / 64}
    travelled: Counter[str] = Counter()
    seen: set[tuple[str, int]] = set()
    for r in range(2000):
        for name, start, stop in all_lanes(budget, r)["graph"][0].windows:
            travelled[name] += stop - start
            seen |= {(name, column) for column in range(start, stop)}
    total = 1000 * 0.25 + 1000 + 10 / 64
    assert travelled["calm"] / 2000 == pytest.approx(200 * 250 / total, rel=1e-3)
    assert travelled["wild"] / 2000 == pytest.approx(200 * 1000 / total, rel=1e-3)
    assert travelled["narrow"] / 2000 == pytest.approx(200 * (10 / 64) / total, abs=0.005)
    assert len(seen) == 2010

    budget = one_graph({"calm": 1000, "wild": 100}, 302)
    budget.reweigh({("calm", everywhere): 0.01, ("wild", everywhere): 1.0})
    assert budget.schedule(budget.graphs[0]).waiting(0)["wild"] == 0
    assert all_lanes(budget, 5)["graph"][0].width == pytest.approx(302 - 1, abs=1)


def test_slices_that_agree_everywhere_keep_the_weights_they_had() -> None:
    budget = one_graph({"a": 10, "b": 10}, 8)
    budget.reweigh({("a", (0, 1, 2)): 0.5, ("b", (0, 1, 2)): 0.25})
    before = budget.weights
    budget.reweigh({("a", (0, 1, 2)): 0.0, ("b", (0, 1, 2)): 0.0})
    budget.reweigh({})
    assert budget.weights == before == {"a": 1.0, "b": 0.5}


def test_weights_are_steps_that_a_last_bit_does_not_move() -> None:
    budget = one_graph({"a": 10, "b": 10}, 8)
    budget.reweigh({("a", (0,)): 1.0, ("b", (0,)): 0.3})
    first = budget.weights
    budget.reweigh({("a", (0,)): np.nextafter(1.0, 2.0), ("b", (0,)): np.nextafter(0.3, 0.0)})
    assert budget.weights == first
    assert first["b"] == pytest.approx(0.3, rel=0.1)


@given(kinds, seeds, rounds, shares)
def test_what_travels_and_what_waits_add_up(kind: dict[str, object], seed: int, round_index: int, share: float) -> None:
    plan = draw_network(kind, seed)
    budget = make(plan, share)
    travelled = carried(plan, budget, round_index)
    for graph in plan.graphs.values():
        schedule, links = budget.schedule(graph), len(graph.at(round_index).neighbours)
        for name, waiting in schedule.waiting(round_index).items():
            assert travelled[name].sum() + waiting == links * plan.layouts[name].width
            assert waiting >= 0


@given(kinds, seeds, st.integers(0, 20))
def test_parts_by_load_are_the_entries_of_the_matrices(kind: dict[str, object], seed: int, round_index: int) -> None:
    """Each entry once, with its weight, under the names of all matrices that join its two agents in some direction."""
    plan = draw_network(kind, seed)
    matrices = {name: graph.at(round_index) for name, graph in plan.graphs.items()}
    joined = defaultdict(set)
    for name, matrix in matrices.items():
        for pair in matrix.links().tolist():
            joined[frozenset(pair)].add(name)
    for name, parts in split_by_load(matrices).items():
        off_diagonal = sum((p.dense() - np.diag(np.diag(p.dense())) for p in parts.values()), start=0.0)
        W = matrices[name].dense()
        assert np.array_equal(off_diagonal, W - np.diag(np.diag(W))) or not parts
        assert sum(len(part.neighbours) for part in parts.values()) == len(matrices[name].neighbours)
        for load, part in parts.items():
            assert all(joined[frozenset(pair)] == set(load) for pair in part.links().tolist())


def one_graph(widths: dict[str, int], columns: int) -> Budget:
    """A triangle with some slices, and a budget of so many numbers."""
    graph = slice_graph("graph", [(0, 1, 2)], Topology(kind="complete"), 0, 3)
    plan = stub_plan({"graph": graph}, {n: ("graph", w) for n, w in widths.items()}, np.zeros(3, np.int64), 1)
    return Budget(plan, columns * plan.item_bytes)
