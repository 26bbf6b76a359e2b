"""Inside ranks: mixing against dense W @ X, against Isend/Irecv, and against the same agents on one rank."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch
from mixing_cases import KINDS, Case, Mixer, draw_case, draw_cases, gathered, lay_out, stub_plan
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.exchange.lanes import WholeRows
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.world import World
from parse_mpi.seeding import stream

ROUNDS = 3
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}  # relative Frobenius norm
WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mixing_is_the_dense_product(dtype: str) -> None:
    """x <- W x in float64 over several rounds, for every kind of graph, slices that some ranks lack, any placement."""
    for case in draw_cases(WORLD.size):
        mixer = Mixer(WORLD, case, "auto", dtype)
        exact = {name: x.astype(dtype).astype(np.float64) for name, x in case.values.items()}
        for r in range(ROUNDS):
            mixer.round(r)
            W = case.graph.at(r).dense()
            for name, x in mixer.values().items():
                exact[name] = W @ exact[name]
                assert np.linalg.norm(x - exact[name]) <= TOLERANCE[dtype] * np.linalg.norm(exact[name]), case
        mixer.exchange.free()


def test_transport_placement_and_row_order_leave_the_bits() -> None:
    """Neighbourhood collective, Isend/Irecv, and all agents on one rank: the same bits after several rounds."""
    for case in draw_cases(WORLD.size):
        alone = Mixer(ALONE, case)
        mixers = [Mixer(WORLD, case, "neighbour"), Mixer(WORLD, case, "p2p", seed=1), Mixer(WORLD, moved(case))]
        for r in range(ROUNDS):
            alone.round(r)
            for mixer in mixers:
                mixer.round(r)
        for mixer in mixers:
            for name, x in mixer.values().items():
                assert x.tobytes() == alone.values()[name].tobytes(), (name, case)
        for mixer in [alone, *mixers]:
            mixer.exchange.free()


def moved(case: Case) -> Case:
    """The same agents on other ranks."""
    return Case(case.graph, case.widths, (case.rank_of * 2 + 1) % WORLD.size, case.values)


def learn(mixer: Mixer, case: Case, round_index: int) -> dict[str, NDArray[np.float64]]:
    """Change every row at random, as local steps would, gradients and all; returns the changes [holders, width]."""
    changes = {
        name: stream(round_index, f"learn {name}").normal(scale=0.1, size=x.shape) for name, x in case.values.items()
    }
    for name, rows in mixer.slices.items():
        index = np.searchsorted(case.graph.agents, rows.agents)
        rows.local += torch.from_numpy(changes[name][index]).to(rows.local.dtype)
        rows.gradients.fill_(torch.nan)
    return changes


def test_what_is_learnt_while_rows_travel_is_added_to_the_mixture() -> None:
    """Order consensus: x+ = W x + (x_H - x), in float64 for every kind of graph."""
    for case in draw_cases(WORLD.size):
        mixer = Mixer(WORLD, case, "auto", "float64", apart=True)
        exact = dict(case.values)
        for r in range(ROUNDS):
            mixer.exchange.start(r)
            changes = learn(mixer, case, r)
            mixer.finish()
            W = case.graph.at(r).dense()
            for name, x in mixer.values().items():
                exact[name] = W @ exact[name] + changes[name]
                assert np.linalg.norm(x - exact[name]) <= 1e-13 * np.linalg.norm(exact[name]), case
        mixer.exchange.free()


@pytest.mark.parametrize("apart", [False, True], ids=["adapt-then-combine", "consensus"])
def test_rounds_of_learning_and_mixing_have_the_bits_of_one_rank(apart: bool) -> None:
    for case in draw_cases(WORLD.size):
        mixers = [
            Mixer(ALONE, case, apart=apart),
            Mixer(WORLD, case, "neighbour", apart=apart),
            Mixer(WORLD, moved(case), "p2p", seed=1, apart=apart),
        ]
        for r in range(ROUNDS):
            for mixer in mixers:
                if apart:
                    mixer.exchange.start(r)
                learn(mixer, case, r)
                if not apart:
                    mixer.exchange.start(r)
                mixer.finish()
        for mixer in mixers:
            for name, x in mixer.values().items():
                assert x.tobytes() == mixers[0].values()[name].tobytes(), (name, case)
            mixer.exchange.free()


@pytest.mark.parametrize("apart", [False, True])
def test_slices_that_are_not_due_stay_and_are_not_sent(apart: bool) -> None:
    """Slices that mix every third round, with one matrix after the other."""
    for case in draw_cases(WORLD.size):
        slices = {name: ("graph", width) for name, width in case.widths.items()}
        plan = stub_plan({"graph": case.graph}, slices, case.rank_of, WORLD.size, "float64", every=3)
        rows = lay_out(WORLD, plan, case.values, apart=apart)
        exchange = GraphExchange(WORLD, plan, case.graph, rows, 0, WholeRows(plan, case.graph))
        exact = dict(case.values)
        for r in range(7):
            exchange.start(r)
            exchange.mix_interior()
            exchange.wait()
            exchange.mix_boundary()
            if r in (2, 5):
                exact = {name: case.graph.at(r // 3).dense() @ x for name, x in exact.items()}
            else:
                assert exchange.sent_bytes() == exchange.payload_bytes() == {}
            for name, x in gathered(WORLD, plan, rows).items():
                assert np.allclose(x, exact[name], rtol=0, atol=1e-13)
        exchange.free()


def test_agents_without_neighbours_keep_their_bits() -> None:
    seen = 0
    for case in draw_cases(WORLD.size, seeds=2):
        mixer = Mixer(WORLD, case)
        before = mixer.values()
        mixer.round(0)
        isolated = case.graph.at(0).degrees == 0
        seen += int(isolated.sum())
        for name, x in mixer.values().items():
            assert (x[isolated] == before[name][isolated]).all()
            assert (x[~isolated] != before[name][~isolated]).any(1).all()
        mixer.exchange.free()
    assert seen > 20


@pytest.mark.parametrize("via", ["neighbour", "p2p"])
def test_bytes_are_counted_once_per_remote_row_and_destination(via: str) -> None:
    """Against a count from W: row j goes to rank d once if any agent of d has a weight for it."""
    for case in draw_cases(WORLD.size):
        mixer = Mixer(WORLD, case, via)
        ranks = case.rank_of[list(case.graph.agents)] if WORLD.size > 1 else np.zeros(len(case.graph.agents))
        for r in range(ROUNDS):
            mixer.round(r)
            W = case.graph.at(r).dense()
            needed = {
                d: sum(bool(W[ranks == d, j].any()) for j in np.flatnonzero(ranks == WORLD.rank))
                for d in set(range(WORLD.size)) - {WORLD.rank}
            }
            for name, sent in mixer.exchange.sent_bytes().items():
                assert sent == {d: rows * case.widths[name] * 4 for d, rows in needed.items() if rows}
        mixer.exchange.free()


def test_graphs_in_flight_together_do_not_mix_up() -> None:
    """All graphs start, then all mix, as in a round of training; both transports at once."""
    vias = ("neighbour", "p2p", "p2p", "neighbour", "auto", "p2p")
    cases = [draw_case(topology, "overlay", WORLD.size, 5) for topology in KINDS]
    together = [Mixer(WORLD, case, via, tag=k) for k, (case, via) in enumerate(zip(cases, cycle(vias), strict=False))]
    one_by_one = [Mixer(WORLD, case) for case in cases]
    for r in range(ROUNDS):
        for phase in ("mix_interior", "wait", "mix_boundary"):
            for mixer in together:
                if phase == "mix_interior":
                    mixer.exchange.start(r)
            for mixer in together:
                getattr(mixer.exchange, phase)()
        for mixer in one_by_one:
            mixer.round(r)
    for mixer, reference in zip(together, one_by_one, strict=True):
        assert all(x.tobytes() == reference.values()[name].tobytes() for name, x in mixer.values().items())
    for mixer in together + one_by_one:
        mixer.exchange.free()


def test_consensus_is_an_exact_fixed_point() -> None:
    for case in draw_cases(WORLD.size):
        row = {name: np.repeat(x[:1], len(x), axis=0) for name, x in case.values.items()}
        mixer = Mixer(WORLD, Case(case.graph, case.widths, case.rank_of, row))
        before = mixer.values()
        for r in range(ROUNDS):
            mixer.round(r)
        assert all(x.tobytes() == before[name].tobytes() for name, x in mixer.values().items())
        mixer.exchange.free()


@pytest.mark.skipif(WORLD.size > 2, reason="slow, and more ranks have the same bits")
@pytest.mark.parametrize("kind", ["ring", "random-gossip"])
def test_the_mean_stays_over_a_thousand_rounds(kind: str) -> None:
    """Float32 rows far from zero, where rounding would show: relative drift of the mean below 1e-6."""
    case = draw_case({"kind": kind}, "overlay", WORLD.size, seed=3)
    values = {name: x + 1.0 for name, x in case.values.items()}
    mixer = Mixer(WORLD, Case(case.graph, case.widths, case.rank_of, values))
    before = mixer.values()
    for r in range(1000):
        mixer.round(r)
    for name, x in mixer.values().items():
        mean = before[name].astype(np.float64).mean(0)
        assert np.linalg.norm(x.astype(np.float64).mean(0) - mean) <= 1e-6 * np.linalg.norm(mean)
        assert case.graph.spectral_gap() > 0
        assert np.ptp(x, axis=0).max() < 1e-4  # and they did reach consensus
    mixer.exchange.free()


@pytest.mark.mpi(min_size=2)
@pytest.mark.skipif(WORLD.size > 2, reason="slow, and two ranks tell")
def test_communicators_are_given_back() -> None:
    """MPICH has 2,043 of them."""
    case = draw_case({"kind": "complete"}, "overlay", WORLD.size, seed=1)
    for _ in range(2100):
        mixer = Mixer(WORLD, case)
        mixer.exchange.free()
    mixer = Mixer(WORLD, case)
    mixer.round(0)
    mixer.exchange.free()
