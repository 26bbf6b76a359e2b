"""Inside ranks: mixing against dense W @ X, against Isend/Irecv, and against the same agents on one rank."""

from __future__ import annotations

import numpy as np
import pytest
from mixing_cases import KINDS, Case, Mixer, draw_case, draw_cases
from mpi4py import MPI

from parse_mpi.exchange.world import World

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
        mixers = [Mixer(WORLD, case, "neighbour"), Mixer(WORLD, case, "p2p", seed=1), moved(case)]
        for r in range(ROUNDS):
            alone.round(r)
            for mixer in mixers:
                mixer.round(r)
        for mixer in mixers:
            for name, x in mixer.values().items():
                assert x.tobytes() == alone.values()[name].tobytes(), (name, case)
        for mixer in [alone, *mixers]:
            mixer.exchange.free()


def moved(case: Case) -> Mixer:
    """The same agents on other ranks."""
    return Mixer(WORLD, Case(case.graph, case.widths, (case.rank_of * 2 + 1) % WORLD.size, case.values))


def test_agents_without_neighbours_keep_their_bits() -> None:
    seen = 0
    for case in draw_cases(WORLD.size, seeds=4):
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
    together = [Mixer(WORLD, case, via, tag=k) for k, (case, via) in enumerate(zip(cases, vias, strict=True))]
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
    for case in draw_cases(WORLD.size, seeds=1):
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
