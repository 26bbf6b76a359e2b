"""Slice graphs: overlays, induced graphs and gossip schedules, and what must not depend on anything but the seed."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixing_cases import KINDS

from parse_mpi.job import Topology
from parse_mpi.topology.slice_graph import SliceGraph, slice_graph

RING = Topology(kind="ring")
GOSSIP = Topology(kind="random-gossip")
SPECS = [
    Topology.model_validate({"scope": scope, **keys, "lazy": lazy})
    for scope in ("overlay", "induced")
    for lazy in (False, True)
    for keys in KINDS
]
CUTTABLE = [spec for spec in SPECS if not spec.directed and spec.kind not in ("one-peer-exponential", "base-k")]


def edges_of(graph: SliceGraph) -> set[tuple[int, int]]:
    return {(i, j) for i, j in graph.union_edges().tolist()}


def links(graph: SliceGraph, round_index: int) -> set[tuple[int, int]]:
    """The links (sender, receiver) of a round."""
    return {(i, j) for i, j in graph.at(round_index).links().tolist()}


def pairs_of(graph: SliceGraph, round_index: int) -> set[tuple[int, int]]:
    """The pairs i < j that mix in a round of an undirected graph."""
    return {(i, j) for i, j in links(graph, round_index) if i < j}


def possible_links(graph: SliceGraph) -> set[tuple[int, int]]:
    """The links that some round may use, each once."""
    listed = [(i, j) for i, j in graph.links().tolist()]
    assert listed == sorted(set(listed))
    return set(listed)


@st.composite
def slice_graphs(draw: st.DrawFn) -> SliceGraph:
    spec = draw(st.sampled_from(SPECS))
    agent_count = draw(st.integers(1, 16))
    place = draw(st.lists(st.integers(0, 3), min_size=agent_count, max_size=agent_count))  # 3: holds nothing
    groups = [[agent for agent in range(agent_count) if place[agent] == number] for number in range(3)]
    return slice_graph("slice", [group for group in groups if group], spec, draw(st.integers(0, 99)), agent_count)


@given(slice_graphs(), st.integers(0, 10**6))
def test_every_round_is_doubly_stochastic_and_stays_inside_the_groups(graph: SliceGraph, round_index: int) -> None:
    matrix = graph.at(round_index)
    dense = matrix.dense()
    assert tuple(matrix.agents.tolist()) == graph.agents
    assert graph.directed or (dense == dense.T).all()
    assert (dense >= 0).all()
    assert (dense.diagonal() >= 0.5 - 1e-14).all() or not graph.spec.lazy
    np.testing.assert_allclose(dense.sum(axis=0), 1.0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, rtol=0, atol=1e-14)
    home = {agent: group for group in graph.groups for agent in group}
    assert all(home[i] == home[j] for i, j in links(graph, round_index))


@given(slice_graphs(), st.integers(0, 10**6))
def test_rounds_use_links_of_the_union_graph(graph: SliceGraph, round_index: int) -> None:
    used, possible = links(graph, round_index), possible_links(graph)
    assert {(min(link), max(link)) for link in possible} == edges_of(graph)
    assert graph.directed or possible == {(j, i) for i, j in possible}
    assert used <= possible
    if graph.phases:
        assert graph.at(round_index) is graph.at(round_index + graph.phases)
        assert possible == set().union(*(links(graph, phase) for phase in range(graph.phases)))
    if graph.static:
        assert used == possible
    if graph.spec.kind == "random-gossip":
        matched = [receiver for _, receiver in used]
        assert len(matched) == len(set(matched))
        assert all(i in matched or j in matched for i, j in edges_of(graph)), "the matching is maximal"


@given(slice_graphs())
def test_active_degree_is_the_mean_over_rounds(graph: SliceGraph) -> None:
    rounds = graph.phases or 400
    received = sum(len(graph.at(round_index).neighbours) for round_index in range(rounds))
    seen = received / rounds / max(len(graph.agents), 1)
    assert graph.active_degree() == pytest.approx(seen, abs=1e-12 if graph.phases else 0.15)


@given(slice_graphs())
def test_exact_after_is_when_everyone_has_the_mean(graph: SliceGraph) -> None:
    rounds = graph.exact_after()
    if rounds is None:
        return
    product = np.eye(len(graph.agents))
    for round_index in range(rounds):
        product = graph.at(round_index).dense() @ product
    home = {agent: group for group in graph.groups for agent in group}
    mean = [[(home[i] is home[j]) / len(home[i]) for j in graph.agents] for i in graph.agents]
    np.testing.assert_allclose(product, mean, rtol=0, atol=1e-14)


@given(st.sampled_from(CUTTABLE), st.integers(2, 14), st.integers(0, 99), st.data())
def test_a_cut_link_is_gone_before_weights_are_worked_out(
    spec: Topology, count: int, seed: int, data: st.DataObject
) -> None:
    whole = slice_graph("slice", [range(count)], spec, seed, count)
    cut = data.draw(st.sets(st.sampled_from(list(combinations(range(count), 2))), max_size=10))
    graph = slice_graph("slice", [range(count)], spec, seed, count, cut)
    assert edges_of(graph) == edges_of(whole) - cut
    for round_index in range(3):
        assert pairs_of(graph, round_index) <= edges_of(graph)
    if graph.static:
        degrees = graph.degrees()
        for i, j in edges_of(graph):
            expected = (0.5 if spec.lazy else 1) / (1 + max(degrees[i], degrees[j]))
            assert graph.at(0).dense()[i, j] == pytest.approx(expected)


@pytest.mark.parametrize(
    "spec",
    [
        Topology(kind="one-peer-exponential"),
        Topology(kind="static-exponential", directed=True),
        Topology(kind="base-k", k=2),
    ],
    ids=lambda spec: spec.kind,
)
def test_links_with_fixed_weights_cant_be_cut(spec: Topology) -> None:
    with pytest.raises(ValueError, match="can't be cut, its weights are fixed"):
        slice_graph("slice", [range(5)], spec, 0, 5, [(0, 1)])


@given(slice_graphs(), st.integers(0, 10**6))
def test_groups_are_independent_of_each_other_and_of_the_name(graph: SliceGraph, round_index: int) -> None:
    alone = [slice_graph("other", [group], graph.spec, graph.seed, graph.agent_count) for group in graph.groups]
    assert set().union(*(edges_of(part) for part in alone)) == edges_of(graph)
    assert set().union(*(links(part, round_index) for part in alone)) == links(graph, round_index)
    reordered = slice_graph("other", graph.groups[::-1], graph.spec, graph.seed, graph.agent_count)
    assert (reordered.union_edges() == graph.union_edges()).all()
    assert links(reordered, round_index) == links(graph, round_index)


@given(slice_graphs())
def test_degrees_and_components_belong_to_the_union_graph(graph: SliceGraph) -> None:
    edges = edges_of(graph)
    assert graph.degrees().dtype == np.int64
    assert graph.degrees().tolist() == [sum(agent in edge for edge in edges) for agent in graph.agents]
    parts = graph.components()
    assert sorted(agent for part in parts for agent in part) == list(graph.agents)
    assert all(any({i, j} <= set(part) for part in parts) for i, j in edges)
    assert [len(part) for part in parts] == sorted(map(len, parts), reverse=True)
    for group, pieces in graph.disconnected_groups():
        assert sorted(agent for piece in pieces for agent in piece) == list(group)
        assert len(pieces) > 1
    assert len(parts) == len(graph.groups) + sum(len(pieces) - 1 for _, pieces in graph.disconnected_groups())


@given(slice_graphs())
def test_the_static_gap_is_the_slowest_groups(graph: SliceGraph) -> None:
    """Of a symmetric W and of one whose rows are shifts of each other, rho is the norm away from consensus."""
    if not graph.static:
        return
    gaps = []
    for group in graph.groups:
        rows = [graph.agents.index(agent) for agent in group]
        block = graph.at(0).dense()[np.ix_(rows, rows)]
        if len(group) > 1:
            gaps.append(1 - np.linalg.norm(block - 1 / len(group), ord=2))
    assert graph.spectral_gap() == pytest.approx(min(gaps, default=math.nan), abs=1e-12, nan_ok=True)


@given(
    st.sampled_from([spec for spec in CUTTABLE if spec.scope == "induced"]),
    st.sets(st.integers(0, 19), min_size=1),
    st.sets(st.integers(0, 19), min_size=1),
)
def test_induced_graphs_are_cut_from_one_graph(spec: Topology, first: set[int], second: set[int]) -> None:
    whole = edges_of(slice_graph("all", [range(20)], spec, 3, 20))
    for holders in (first, second):
        expected = {(i, j) for i, j in whole if {i, j} <= holders}
        assert edges_of(slice_graph("slice", [holders], spec, 3, 20)) == expected


def test_overlay_ring_goes_round_the_holders_and_induced_ring_loses_links() -> None:
    holders = [9, 0, 1, 4]
    assert edges_of(slice_graph("a", [holders], RING, 0, 10)) == {(0, 1), (1, 4), (4, 9), (0, 9)}
    cut = slice_graph("a", [holders], Topology(kind="ring", scope="induced"), 0, 10)
    assert edges_of(cut) == {(0, 1), (0, 9)}
    assert cut.components() == [(0, 1, 9), (4,)]
    assert cut.disconnected_groups() == [((0, 1, 4, 9), [(0, 1, 9), (4,)])]
    assert cut.spectral_gap() == 0.0
    assert cut.at(0).dense()[2].tolist() == [0.0, 0.0, 1.0, 0.0]


@given(slice_graphs())
def test_the_smallest_eigenvalue_is_that_of_the_whole_matrix(graph: SliceGraph) -> None:
    if graph.symmetric and graph.agents:
        expected = np.linalg.eigvalsh(graph.at(0).dense())[0]
        assert graph.smallest_eigenvalue() == pytest.approx(expected, abs=1e-12)


def test_an_even_ring_reaches_minus_one_third_and_a_lazy_one_plus() -> None:
    assert slice_graph("a", [range(30)], RING, 0, 30).smallest_eigenvalue() == pytest.approx(-1 / 3)
    lazy = slice_graph("a", [range(30)], Topology(kind="ring", lazy=True), 0, 30)
    assert lazy.smallest_eigenvalue() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no fixed symmetric W"):
        slice_graph("a", [range(30)], GOSSIP, 0, 30).smallest_eigenvalue()


@given(slice_graphs())
def test_the_gap_of_a_cycle_is_that_of_its_mean_square(graph: SliceGraph) -> None:
    if graph.phases < 2 or len(graph.groups) != 1:
        return
    cycle = [graph.at(phase).dense() for phase in range(graph.phases)]
    left = np.linalg.eigvalsh(sum(W.T @ W for W in cycle) / len(cycle))[-2]
    assert graph.spectral_gap() == pytest.approx(1 - left, abs=1e-12)


def test_groups_of_other_sizes_repeat_after_their_common_multiple() -> None:
    """5 agents take 3 rounds and 20 take 5; two are static among themselves, and their gap is squared to compare."""
    peers = Topology(kind="one-peer-exponential")
    graph = slice_graph("a", [range(5), range(5, 25), [25, 26]], peers, 0, 27)
    assert graph.phases == 15
    assert graph.at(16) is graph.at(1)
    assert not graph.static
    pair_and_more = slice_graph("a", [[0, 1], [2, 3, 4]], Topology(kind="one-peer-exponential", lazy=True), 0, 5)
    three = slice_graph("a", [[2, 3, 4]], Topology(kind="one-peer-exponential", lazy=True), 0, 5)
    assert pair_and_more.spectral_gap() == min(1 - 0.5**2, three.spectral_gap())


def test_gossip_changes_with_the_round_and_the_seed_and_repeats_exactly() -> None:
    graph = slice_graph("a", [range(30)], GOSSIP, 0, 30)
    schedule = [pairs_of(graph, round_index) for round_index in range(20)]
    assert all(schedule[k] != schedule[k + 1] for k in range(19))
    again = slice_graph("a", [range(30)], GOSSIP, 0, 30)
    assert [pairs_of(again, round_index) for round_index in reversed(range(20))] == schedule[::-1]
    assert pairs_of(slice_graph("a", [range(30)], GOSSIP, 1, 30), 0) != schedule[0]


def test_the_schedule_is_the_same_on_every_machine_and_version() -> None:
    """Pinned: a change here means that old runs can't be resumed or repeated."""
    assert sorted(pairs_of(slice_graph("a", [range(8)], GOSSIP, 0, 8), 7)) == [(0, 4), (1, 2), (3, 7), (5, 6)]
    drawn = Topology(kind="erdos-renyi", probability=0.4)
    assert sorted(edges_of(slice_graph("a", [range(6)], drawn, 0, 6))) == [
        (0, 1),
        (0, 2),
        (0, 4),
        (1, 3),
        (1, 5),
        (2, 3),
        (2, 5),
        (3, 4),
    ]


def test_odd_one_out_idles_and_every_agent_meets_every_other() -> None:
    graph = slice_graph("a", [range(5)], GOSSIP, 0, 5)
    met = [pairs_of(graph, round_index) for round_index in range(60)]
    assert all(len(pairs) == 2 for pairs in met)
    assert set().union(*met) == set(combinations(range(5), 2))


@pytest.mark.parametrize(
    ("spec", "gap"),
    [
        (RING, (2 - 2 * math.cos(math.pi / 15)) / 3),
        (Topology(kind="complete"), 1.0),
        (GOSSIP, 15 / 29),
        (Topology(kind="random-gossip", base="ring"), 0.00945),
        (Topology(kind="random-gossip", base="ring", scope="induced"), 0.00945),
    ],
    ids=["ring", "complete", "gossip", "gossip on a ring", "gossip on an induced ring"],
)
def test_gaps_of_30_agents(spec: Topology, gap: float) -> None:
    assert slice_graph("a", [range(30)], spec, 0, 30).spectral_gap() == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "holders"),
    [
        (Topology(kind="random-gossip", base="erdos-renyi", probability=0.4), range(10)),
        (Topology(kind="random-gossip", base="ring", scope="induced"), range(3, 8)),
    ],
    ids=["erdos-renyi", "path"],
)
def test_a_sampled_gossip_gap_predicts_the_contraction(spec: Topology, holders: range) -> None:
    """The worst direction's mean squared contraction over rounds that the gap was not estimated from."""
    graph = slice_graph("a", [holders], spec, 1, 10)
    rounds = range(10_000, 13_000)
    mean_square = sum((mixing := graph.at(index).dense()).T @ mixing for index in rounds) / len(rounds)
    assert graph.spectral_gap() == pytest.approx(1 - np.linalg.eigvalsh(mean_square)[-2], rel=0.1)
    assert graph.spectral_gap() > 0.02


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_sampled_and_tree_gaps_meet_at_a_hundred_agents(probability: float, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Topology(kind="random-gossip", base="erdos-renyi", probability=probability)
    sampled = slice_graph("a", [range(100)], spec, 2, 100).spectral_gap()
    monkeypatch.setattr("parse_mpi.topology.schedules.SAMPLED_AGENTS", 99)
    tree = slice_graph("a", [range(100)], spec, 2, 100).spectral_gap()
    assert 0.95 * tree < sampled < tree


def test_the_gap_is_the_smallest_over_groups_and_nan_where_nobody_mixes() -> None:
    sizes = slice_graph("a", [range(3), range(3, 10), [10]], RING, 0, 11)
    assert sizes.spectral_gap() == slice_graph("a", [range(7)], RING, 0, 7).spectral_gap()
    assert math.isnan(slice_graph("a", [[0], [1]], RING, 0, 2).spectral_gap())
    assert math.isnan(slice_graph("a", [[0], [1]], GOSSIP, 0, 2).spectral_gap())
    assert slice_graph("a", [[0, 1]], Topology(kind="random-gossip", base="ring"), 0, 2).spectral_gap() == 1.0


def connected_probability(count: int, probability: float) -> float:
    """Gilbert's recursion (1959) for the probability that G(count, probability) is connected."""
    connected = [0.0, 1.0]
    for size in range(2, count + 1):
        falls_apart = sum(
            math.comb(size - 1, part - 1) * connected[part] * (1 - probability) ** (part * (size - part))
            for part in range(1, size)
        )
        connected.append(1 - falls_apart)
    return connected[count]


@pytest.mark.parametrize("probability", [0.15, 0.3])
@pytest.mark.parametrize("scope", ["overlay", "induced"])
def test_random_graphs_are_connected_as_often_as_gilbert_says(scope: str, probability: float) -> None:
    spec = Topology.model_validate({"kind": "erdos-renyi", "scope": scope, "probability": probability})
    holders, draws = range(5, 25), 800
    connected = sum(not slice_graph("a", [holders], spec, seed, 30).disconnected_groups() for seed in range(draws))
    expected = connected_probability(20, probability)
    assert abs(connected / draws - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)


def test_a_ring_cut_down_to_20_of_30_falls_into_seven_pieces() -> None:
    """30 agents placed at random: 6.9 components on average, 11 % of the holders isolated, never connected."""
    spec, generator, draws = Topology(kind="ring", scope="induced"), np.random.default_rng(0), 600
    graphs = [slice_graph("a", [generator.permutation(30)[:20].tolist()], spec, 0, 30) for _ in range(draws)]
    assert np.mean([len(graph.components()) for graph in graphs]) == pytest.approx(30 * (20 / 30) * (10 / 29), abs=0.2)
    isolated = np.mean([(graph.degrees() == 0).mean() for graph in graphs])
    assert isolated == pytest.approx(10 * 9 / (29 * 28), abs=0.02)
    assert all(graph.disconnected_groups() for graph in graphs)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1, 2]], "in two groups"),
        ([[0, 0]], "twice in one"),
        ([[0], []], "empty"),
        ([[0, 5]], "outside"),
        ([[-1, 0]], "outside"),
    ],
)
def test_what_is_no_set_of_groups_is_refused(groups: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slice_graph("encoder[top]", groups, RING, 0, 5)


def test_a_thousand_agents_on_gossip_mix_without_listing_half_a_million_edges() -> None:
    graph = slice_graph("a", [range(1000)], GOSSIP, 0, 1000)
    assert len(graph.at(3).neighbours) == 1000
    assert graph.components() == [tuple(range(1000))]
    assert graph.degrees().tolist() == [999] * 1000
    assert graph.spectral_gap() == pytest.approx(500 / 999)
    assert "edges" not in vars(graph._schedules[0].union)
