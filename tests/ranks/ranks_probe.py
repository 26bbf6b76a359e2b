"""Inside ranks: what the doctor measures between ranks, and what it makes of an MPI that is wrong about itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mpi4py import MPI

from parse_mpi.exchange.probe import SIZES, measure_links, pairs_to_measure, wrong_from_device
from parse_mpi.exchange.world import World

WORLD = World(MPI.COMM_WORLD.Dup())

pytestmark = pytest.mark.mpi


def test_every_rank_learns_the_same_of_the_same_links() -> None:
    links = measure_links(WORLD)
    pairs = pairs_to_measure([0] * WORLD.size)
    assert [(*link.ranks, link.across_hosts) for link in links] == pairs
    assert all(tuple(link.seconds) == SIZES and min(link.seconds.values()) > 0 for link in links)
    told = WORLD.all_json([[link.ranks, link.latency_s, link.bytes_per_s] for link in links])
    assert all(other == told[0] for other in told)


def test_memory_of_a_device_arrives() -> None:
    assert wrong_from_device(WORLD, torch.device("cpu")) == []


class Damaged:
    """A communicator over which the last rank receives one number wrong, or is refused."""

    def __init__(self, error: Exception | None):
        self.error = error

    def Sendrecv(self, sent: torch.Tensor, following: int, recvbuf: torch.Tensor, source: int) -> None:
        WORLD.comm.Sendrecv(sent, following, recvbuf=recvbuf, source=source)
        if WORLD.rank == WORLD.size - 1:
            recvbuf[17] += 1
            if self.error:
                raise self.error


@pytest.mark.parametrize(("error", "what"), [(None, "wrong bytes"), (RuntimeError("planted\nand more"), "planted")])
def test_memory_of_a_device_that_arrives_wrong_is_told_to_all(error: Exception | None, what: str) -> None:
    world: Any = SimpleNamespace(comm=Damaged(error), rank=WORLD.rank, size=WORLD.size, all_json=WORLD.all_json)
    assert wrong_from_device(world, torch.device("cpu")) == [f"rank {WORLD.size - 1}: {what}"]
