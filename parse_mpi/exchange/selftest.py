"""What `parse-mpi doctor` asks of MPI: which library this is, which launcher fits, and whether rows arrive right."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from parse_mpi.exchange.world import World

ROW_BYTES = 1 << 17
REPEATS = 5
ANSWER_S = 10.0
SIGNATURES = {"Open MPI": "Open MPI", "OpenRTE": "Open MPI", "HYDRA": "MPICH", "Intel(R) MPI": "MPICH"}
OF_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDI_")

Rows = NDArray[np.uint8]


def library_path() -> str:
    """The file of the MPI library that this process has loaded; "" where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ""
    files = sorted({line.split(maxsplit=5)[-1] for line in lines if "/libmpi" in line})
    return files[0] if files else ""


def library_family() -> str:
    """`MPICH`, `Open MPI`, …: what a launcher must belong to. MPICH's descendants share its launcher."""
    vendor: str = MPI.get_vendor()[0]
    return "MPICH" if vendor in ("MPICH", "Intel MPI", "MVAPICH", "MVAPICH2", "Cray MPI") else vendor


def launcher_family(mpiexec: str) -> str:
    """The same for a launcher, from what `mpiexec --version` prints; "" if it does not say."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    try:
        answer = subprocess.run(
            [mpiexec, "--version"], env=environment, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    said = answer.stdout + answer.stderr
    return next((family for signature, family in SIGNATURES.items() if signature in said), "")


def thread_level() -> str:
    """What MPI allows threads to do, as MPI names it."""
    names = ("THREAD_SINGLE", "THREAD_FUNNELED", "THREAD_SERIALIZED", "THREAD_MULTIPLE")
    level = MPI.Query_thread()
    return next(f"MPI_{name}" for name in names if getattr(MPI, name) == level)


@dataclass(frozen=True)
class ExchangeTest:
    """How the neighbourhood collective did. wrong: what arrived wrong, by rank; times: median of the slowest rank."""

    wrong: list[str]
    sent_bytes: int
    neighbour_s: float
    pairs_s: float


def run_exchange_test(world: World) -> ExchangeTest:
    """Rows around a ring by Ineighbor_alltoallv and by Isend/Irecv, compared with each other and with what was sent.

    All ranks call it together and get the same answer. A single rank is its own neighbour.
    """
    rank, size = world.rank, world.size
    peers = sorted({(rank - 1) % size, (rank + 1) % size})
    send = {peer: _rows(rank, peer) for peer in peers}
    expected = {peer: _rows(peer, rank) for peer in peers}
    row = MPI.BYTE.Create_contiguous(ROW_BYTES).Commit()
    ring = world.comm.Create_dist_graph_adjacent(peers, peers, reorder=False)
    by_neighbour, neighbour_s = _timed(world, lambda: _collective(ring, row, send, expected))
    by_pairs, pairs_s = _timed(world, lambda: _pairs(world.comm, row, send, expected))
    ring.Free()
    row.Free()
    wrong = [
        f"{name}: rank {rank} got wrong bytes from rank {peer}"
        for name, received in (("Ineighbor_alltoallv", by_neighbour), ("Isend/Irecv", by_pairs))
        for peer in peers
        if not np.array_equal(received[peer], expected[peer])
    ]
    sent_bytes = sum(rows.nbytes for rows in send.values())
    told = world.all_json([wrong, sent_bytes, neighbour_s, pairs_s])
    return ExchangeTest([line for t in told for line in t[0]], *(max(t[k] for t in told) for k in (1, 2, 3)))


def _rows(source: int, destination: int) -> Rows:
    """What one rank sends another: 1 to 3 rows that no other pair has."""
    rows = 1 + (source + 2 * destination) % 3
    return np.random.default_rng([source, destination]).integers(0, 256, (rows, ROW_BYTES), np.uint8)


def _timed(world: World, exchange: Callable[[], dict[int, Rows]]) -> tuple[dict[int, Rows], float]:
    seconds = []
    for _ in range(REPEATS):
        world.barrier()
        start = time.perf_counter()
        received = exchange()
        seconds.append(time.perf_counter() - start)
    return received, statistics.median(seconds)


def _collective(
    ring: MPI.Distgraphcomm, row: MPI.Datatype, send: Mapping[int, Rows], expected: Mapping[int, Rows]
) -> dict[int, Rows]:
    outgoing, incoming = ([len(rows) for rows in side.values()] for side in (send, expected))
    received = np.zeros((sum(incoming), ROW_BYTES), np.uint8)
    ring.Ineighbor_alltoallv(
        [np.concatenate(list(send.values())), outgoing, row],
        [received, incoming, row],
    ).Wait()
    return dict(zip(expected, np.split(received, np.cumsum(incoming)[:-1]), strict=True))


def _pairs(
    comm: MPI.Intracomm, row: MPI.Datatype, send: Mapping[int, Rows], expected: Mapping[int, Rows]
) -> dict[int, Rows]:
    received = {peer: np.zeros_like(rows) for peer, rows in expected.items()}
    requests = [comm.Irecv([rows, len(rows), row], peer) for peer, rows in received.items()]
    requests += [comm.Isend([rows, len(rows), row], peer) for peer, rows in send.items()]
    MPI.Request.Waitall(requests)
    return received
