"""Inside ranks: agreement, JSON and sums over agents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.errors import LaunchError
from parse_mpi.exchange.devices import take_seat
from parse_mpi.exchange.world import World
from parse_mpi.seeding import stream

WORLD = World(MPI.COMM_WORLD.Dup())
ALONE = World(MPI.COMM_SELF)

pytestmark = pytest.mark.mpi


def deal(seed: int, count: int) -> NDArray[np.int64]:
    """This rank's share of `count` agents in any order; some ranks may have none."""
    draw = stream(seed, "deal")
    rank_of = draw.integers(0, WORLD.size, count)
    return draw.permutation(count)[rank_of == WORLD.rank]


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 5, 4)])
def test_gather_agents_is_every_row_by_id(dtype: str, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        count = int(stream(seed, "count").integers(1, 20))
        everything: NDArray[Any] = (100 * stream(seed, "rows").normal(size=(count, *shape))).astype(dtype)
        ids = deal(seed, count)
        gathered = WORLD.gather_agents(ids, everything[ids])
        assert gathered.dtype == dtype
        assert gathered.shape == everything.shape
        assert gathered.tobytes() == everything.tobytes()


def test_gather_agents_takes_strided_rows() -> None:
    everything = np.arange(60.0).reshape(10, 6)
    ids = deal(0, 10)
    assert (WORLD.gather_agents(ids, everything[ids][:, ::2]) == everything[:, ::2]).all()


@pytest.mark.parametrize("shape", [(), (7,), (3, 65)])
def test_the_exact_sum_has_the_bits_of_one_rank(shape: tuple[int, ...]) -> None:
    """Values of very different size, so that another order of additions would show."""
    for seed in range(20):
        draw = stream(seed, "rows")
        everything = draw.normal(size=(13, *shape)) * 10.0 ** draw.integers(-8, 8, size=(13, *shape))
        ids = deal(seed, 13)
        total = WORLD.sum_over_agents(ids, everything[ids], exact=True)
        assert total.shape == shape
        assert total.tobytes() == ALONE.sum_over_agents(np.arange(13), everything, exact=True).tobytes()
        quick = WORLD.sum_over_agents(ids, everything[ids], exact=False)
        assert np.allclose(quick, total, rtol=0, atol=1e-12 * np.abs(everything).max())


def test_a_flag_of_any_rank_reaches_all() -> None:
    for raising in range(WORLD.size):
        mine = WORLD.rank == raising
        assert WORLD.any_of([mine, False, True]) == [True, False, True]
        assert WORLD.all_agree(not mine) is False
    assert WORLD.all_agree(True) is True


def test_flags_in_flight_while_others_travel() -> None:
    first = WORLD.start_any_of([WORLD.rank == 0, False])
    second = WORLD.start_any_of([False, WORLD.rank == WORLD.size - 1])
    WORLD.barrier()
    assert second() == [False, True]
    assert first() == [True, False]


def test_json_of_all_ranks() -> None:
    value = {"rank": WORLD.rank, "text": "ä" * 1000 * WORLD.rank, "list": [None, 1.5, True]}
    expected = [{"rank": r, "text": "ä" * 1000 * r, "list": [None, 1.5, True]} for r in range(WORLD.size)]
    assert WORLD.all_json(value) == expected
    assert WORLD.gather_json(value) == (expected if WORLD.rank == 0 else None)
    assert WORLD.broadcast_json(value) == expected[0]


def test_equal_values_pass_and_one_odd_rank_raises_everywhere() -> None:
    WORLD.require_equal("the job", "same")
    for odd in range(1, WORLD.size):
        with pytest.raises(LaunchError, match=f"(?s)disagree about the job.*rank {odd}: other.*Start all ranks"):
            WORLD.require_equal("the job", "other" if WORLD.rank == odd else "same")


def test_every_rank_gets_a_seat_and_all_know_it() -> None:
    device, seats = take_seat(WORLD, "cpu", agents=WORLD.rank + 1)
    assert str(device) == "cpu"
    assert [seat.rank for seat in seats] == list(range(WORLD.size))
    assert [seat.agents for seat in seats] == [r + 1 for r in range(WORLD.size)]
    assert {seat.local_size for seat in seats} == {WORLD.size}
    assert sorted(seat.local_rank for seat in seats) == list(range(WORLD.size))


class TwoHosts(World):
    """A world in which even and odd ranks share a host each."""

    def on_host(self) -> World:
        return World(self.comm.Split(self.rank % 2))


def test_every_rank_knows_the_node_of_all() -> None:
    assert WORLD.nodes() == [0] * WORLD.size
    assert TwoHosts(WORLD.comm).nodes() == [rank % 2 for rank in range(WORLD.size)]
