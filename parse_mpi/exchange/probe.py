"""What `parse-mpi doctor` finds out about an MPI by trying: limits of a message, GPU memory, lost ranks, links."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.exchange.selftest import library_family, library_path
from parse_mpi.exchange.world import World

if TYPE_CHECKING:
    import torch

BEYOND_INT = 2**31 + 8  # more than an int can count
SIZES = (8, 1 << 16, 1 << 22)  # bytes of messages between a pair of ranks
PAIR_S = 0.1  # for each size
MOST_TRIPS, FEWEST_TRIPS = 500, 3
POLL_S = 1e-3


# -- how much a message may hold ---------------------------------------------------------------------------------------


def refuses_large_counts() -> str:
    """What MPI says to a message of more than 2^31-1 items; "" where it takes one. The items are empty: that costs
    nothing."""
    nothing = MPI.BYTE.Create_contiguous(0).Commit()
    message = [np.empty(0, np.uint8), BEYOND_INT, nothing]
    try:
        MPI.COMM_SELF.Sendrecv(message, 0, recvbuf=message, source=0)
    except (MPI.Exception, OverflowError) as error:
        return _first_line(error)
    finally:
        nothing.Free()
    return ""


def refuses_large_rows() -> str:
    """What MPI says to a row of more than 2^31-1 bytes, which the exchange makes one item; "" where it takes one."""
    try:
        MPI.BYTE.Create_contiguous(BEYOND_INT).Free()
    except (MPI.Exception, OverflowError) as error:
        return _first_line(error)
    return ""


# -- GPUs and lost ranks -----------------------------------------------------------------------------------------------


def says_cuda_aware() -> bool:
    """Whether the MPI library says that it takes pointers to GPU memory (`MPIX_Query_cuda_support`)."""
    path = library_path()
    query = getattr(ctypes.CDLL(path), "MPIX_Query_cuda_support", None) if path else None
    return bool(query is not None and query())


def wrong_from_device(world: World, device: torch.device) -> list[str]:
    """Which ranks got wrong bytes when memory of a device was sent around the ring; all ranks call it together."""
    import torch

    count, following, previous = 1 << 16, (world.rank + 1) % world.size, (world.rank - 1) % world.size
    sent = torch.arange(count, device=device) + world.rank
    received = torch.zeros_like(sent)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # MPI knows nothing of the streams that fill this memory
    wrong = ""
    try:
        world.comm.Sendrecv(sent, following, recvbuf=received, source=previous)
        if not torch.equal(received.cpu(), torch.arange(count) + previous):
            wrong = "wrong bytes"
    except Exception as error:
        wrong = _first_line(error)
    return [f"rank {rank}: {what}" for rank, what in enumerate(world.all_json(wrong)) if what]


def survives_lost_ranks(environment: Mapping[str, str]) -> bool:
    """Whether ranks may outlive others (ULFM).

    The calls can't be asked: Agree and Shrink of MPICH succeed too as long as nobody is lost. What counts is Open MPI 5
    or newer, whose launcher was told `--with-ft ulfm`.
    """
    if library_family() != "Open MPI" or MPI.get_vendor()[1][0] < 5:
        return False
    return environment.get("OMPI_MCA_mpi_ft_enable", "").lower() in ("1", "true", "t", "yes")


# -- links -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Two ranks and how long a message takes from one to the other: bytes of the message -> seconds, the median."""

    ranks: tuple[int, int]
    across_hosts: bool
    seconds: dict[int, float]

    @property
    def latency_s(self) -> float:
        return self.seconds[min(self.seconds)]

    @property
    def bytes_per_s(self) -> float:
        """Of the largest message."""
        return max(self.seconds) / self.seconds[max(self.seconds)]


def measure_links(world: World) -> list[Link]:
    """Ping-pong between a few pairs, one after the other, while other ranks sleep; every rank gets the answer."""
    host = world.on_host()
    first_of_host = int(host.broadcast_json(world.rank))
    host.free()
    measured = []
    for a, b, across in pairs_to_measure(world.all_json(first_of_host)):
        if world.rank in (a, b):
            seconds = {size: _one_way(world, b if world.rank == a else a, world.rank == a, size) for size in SIZES}
            measured += [asdict(Link((a, b), across, seconds))] if world.rank == a else []
        finished = world.comm.Ibarrier()
        while not finished.Test():
            time.sleep(POLL_S)  # and not in MPI, where waiting takes a core
    return [link for links_of_rank in world.all_json(measured) for link in map(_link_of_json, links_of_rank)]


def pairs_to_measure(first_of_host: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(rank, rank, on different hosts): two pairs of the fullest host and two of hosts, or as many as there are.

    first_of_host: for each rank, the first rank of its host.
    """
    hosts: dict[int, list[int]] = {}
    for rank, first in enumerate(first_of_host):
        hosts.setdefault(first, []).append(rank)
    fullest, leaders = max(hosts.values(), key=len), list(hosts)
    within = {(fullest[0], other, False) for other in fullest[1:2] + fullest[-1:] if other != fullest[0]}
    across = {(leaders[0], other, True) for other in leaders[1:2] + leaders[-1:] if other != leaders[0]}
    return sorted(within) + sorted(across)


def _link_of_json(told: dict[str, Any]) -> Link:
    a, b = told["ranks"]
    return Link((a, b), told["across_hosts"], {int(size): seconds for size, seconds in told["seconds"].items()})


def _one_way(world: World, peer: int, first: bool, size_bytes: int) -> float:
    """Seconds one way; of use on the first of the pair, which tells the other how many trips there will be."""
    buffer = np.zeros(size_bytes, np.uint8)
    seconds = [_trip(world, buffer, peer, first) for _ in range(FEWEST_TRIPS)][1:]
    trips = np.array([min(MOST_TRIPS, max(FEWEST_TRIPS, int(PAIR_S / 2 / statistics.median(seconds))))])
    if first:
        world.comm.Send(trips, peer)
    else:
        world.comm.Recv(trips, peer)
    return statistics.median(_trip(world, buffer, peer, first) for _ in range(int(trips[0])))


def _trip(world: World, buffer: NDArray[np.uint8], peer: int, first: bool) -> float:
    """There and back; half of its seconds."""
    start = time.perf_counter()
    if first:
        world.comm.Send(buffer, peer)
        world.comm.Recv(buffer, peer)
    else:
        world.comm.Recv(buffer, peer)
        world.comm.Send(buffer, peer)
    return (time.perf_counter() - start) / 2


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
