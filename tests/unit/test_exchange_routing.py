"""What one rank needs of others on a graph: room for ghost rows, neighbours of each phase, and the transport."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixing_cases import KINDS, draw_case

from parse_mpi.exchange.routing import chosen_transport, ghost_bound, make_route, phase_links, rank_neighbours
from parse_mpi.job import Topology
from parse_mpi.topology.slice_graph import slice_graph


@given(st.sampled_from(KINDS), st.sampled_from(["overlay", "induced"]), st.integers(0, 50), st.integers(1, 6))
@settings(max_examples=100)
def test_no_round_needs_more_ghosts_or_other_ranks_than_were_planned(
    kind: dict[str, object], scope: str, seed: int, ranks: int
) -> None:
    """Also where few links are active on average but several meet in one agent now and then."""
    case = draw_case(kind, scope, ranks, seed)
    for rank in range(ranks):
        local = [i for i in case.graph.agents if case.rank_of[i] == rank]
        bound = ghost_bound(case.graph, case.rank_of, rank)
        planned = [rank_neighbours(links, case.rank_of, rank) for links in phase_links(case.graph)]
        for r in range(12):
            route = make_route(case.graph.at(r), case.rank_of, rank, local)
            assert len(route.ghosts) <= bound
            receive_from, send_to = planned[r % len(planned)]
            assert set(route.receive_from) <= set(receive_from)
            assert set(route.send_to) <= set(send_to)


def test_cycles_have_a_set_of_neighbours_for_each_phase() -> None:
    """16 agents, one a rank: in each round of one-peer exponential a rank hears one other and tells one other."""
    graph = slice_graph("graph", [range(16)], Topology(kind="one-peer-exponential"), 0, 16)
    links = phase_links(graph)
    assert len(links) == 4
    for phase, pairs in enumerate(links):
        receive_from, send_to = rank_neighbours(pairs, np.arange(16), 3)
        assert receive_from.tolist() == [(3 - 2**phase) % 16]
        assert send_to.tolist() == [(3 + 2**phase) % 16]


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (Topology(kind="ring"), "neighbour"),
        (Topology(kind="complete"), "neighbour"),
        (Topology(kind="one-peer-exponential"), "neighbour"),
        (Topology(kind="random-gossip"), "p2p"),
        (Topology(kind="random-gossip", base="ring"), "neighbour"),
        (Topology(kind="matcha", base="ring", budget=0.5), "neighbour"),
        (Topology(kind="matcha", base="complete", budget=0.1), "p2p"),
    ],
)
def test_links_that_mostly_idle_are_not_paid_for(topology: Topology, expected: str) -> None:
    graph = slice_graph("graph", [range(12)], topology, 0, 12)
    assert chosen_transport(graph, "auto") == expected
    assert {chosen_transport(graph, via) for via in ("neighbour", "p2p")} == {"neighbour", "p2p"}
