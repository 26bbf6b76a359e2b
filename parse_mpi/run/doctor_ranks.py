"""What `parse-mpi doctor` has all ranks find out together: the exchange, seats, cores, limits, links, GPU memory."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from parse_mpi.exchange.host import usable_cpus
from parse_mpi.run.findings import Finding

if TYPE_CHECKING:
    from parse_mpi.exchange.probe import Link
    from parse_mpi.exchange.world import World

FAST_NETWORK_S = 15e-6  # what no fast network takes for a small message, and most Ethernet does


def check_ranks(world: World) -> Iterator[Finding]:
    """Each finding as soon as it is known; every rank must call it."""
    yield _check_exchange(world)
    if world.size == 1:
        yield Finding("note", "ranks", "1 rank", "to test several: mpiexec -n 2 parse-mpi doctor, or srun")
    has_torch = world.all_agree("torch" in sys.modules)
    if has_torch and world.size > 1:
        yield from _check_seats(world)
    yield from _check_binding(world)
    yield from _check_limits()
    yield from _check_links(world)
    if has_torch:
        yield _check_cuda(world)


def _check_exchange(world: World) -> Finding:
    from parse_mpi.exchange.selftest import run_exchange_test

    test = run_exchange_test(world)
    if test.wrong:
        step = (
            "try another transport (MPICH on UCX: UCX_TLS=tcp,self, on libfabric: FI_PROVIDER=tcp, "
            "Open MPI: --mca pml ob1), or exchange: p2p in the job"
        )
        return Finding("FAIL", "exchange", "; ".join(test.wrong[:4]), step)
    text = (
        f"right bytes by neighbourhood collective ({1e3 * test.neighbour_s:.2f} ms) and by Isend/Irecv "
        f"({1e3 * test.pairs_s:.2f} ms), {test.sent_bytes / 1e6:.1f} MB a rank"
    )
    return Finding("ok", "exchange", text)


def _check_seats(world: World) -> Iterator[Finding]:
    from parse_mpi.exchange.devices import oversubscription, seat_lines, take_seat

    _, seats = take_seat(world, "auto", agents=0)
    for line in seat_lines(seats):
        yield Finding("ok", "device", line.rpartition("  ")[0])
    for warning in oversubscription(seats):
        yield Finding("note", "devices", warning)


def _check_binding(world: World) -> Iterator[Finding]:
    told = world.all_json([socket.gethostname(), usable_cpus()])
    for host in dict.fromkeys(name for name, _ in told):
        yield binding(host, {rank: allowed for rank, (name, allowed) in enumerate(told) if name == host})


def binding(host: str, cores_of: dict[int, list[int]]) -> Finding:
    """Which cores the ranks of a host may run on, and whether they share any."""
    each = [f"rank {rank} on {core_list(allowed)}" for rank, allowed in cores_of.items()]
    if len(each) == 1:
        return Finding("ok", "binding", f"{host}: {each[0]}")
    ranks_on = Counter(core for allowed in cores_of.values() for core in allowed)
    shared = sorted(core for core, count in ranks_on.items() if count > 1)
    if not shared:
        return Finding("ok", "binding", f"{host}: cores of their own: {', '.join(each)}")
    step = "to bind them: srun --cpu-bind=cores, mpiexec -bind-to core (MPICH), mpiexec --bind-to core (Open MPI)"
    if all(allowed == shared for allowed in cores_of.values()):
        text = f"{host}: {len(each)} ranks, not bound: each may run on {core_list(shared)}"
        return Finding("note", "binding", text, step)
    return Finding("note", "binding", f"{host}: ranks share {core_list(shared)}: {', '.join(each)}", step)


def core_list(numbers: list[int]) -> str:
    """`core 3`, or `cores 0-3, 8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    listed = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
    return f"core{'s' if len(numbers) != 1 else ''} {listed}"


def _check_limits() -> Iterator[Finding]:
    """The same on all ranks, which have one MPI library."""
    from parse_mpi.exchange.probe import refuses_large_counts, refuses_large_rows, survives_lost_ranks

    if row := refuses_large_rows():
        text = f"no row above 2 GiB ({row}): a slice of an agent, or what of it travels at once, must stay below that"
        yield Finding("note", "large counts", text, "another MPI (MPICH), or exchange.budget_bytes_per_link in the job")
    elif counts := refuses_large_counts():
        text = f"not of single items ({counts}), but rows are counted whole: no limit here"
        yield Finding("ok", "large counts", text)
    else:
        yield Finding("ok", "large counts", "more than 2^31-1 items in a message")
    survives = survives_lost_ranks(os.environ)
    text = "on (ULFM, which a run does not use)" if survives else "a lost rank ends the launch, the next one resumes"
    yield Finding("ok", "lost ranks", text)


def _check_links(world: World) -> Iterator[Finding]:
    from parse_mpi.exchange.probe import measure_links

    for link in measure_links(world):
        yield link_finding(link)


def link_finding(link: Link) -> Finding:
    """Latency, middle size and bandwidth of a pair of ranks."""
    where = "on two hosts" if link.across_hosts else "on one host"
    middle = sorted(link.seconds)[1]
    text = (
        f"ranks {link.ranks[0]} and {link.ranks[1]}, {where}: {1e6 * link.latency_s:.1f} µs, {middle >> 10} KB in "
        f"{1e6 * link.seconds[middle]:.0f} µs, {max(link.seconds) >> 20} MB at {1e-9 * link.bytes_per_s:.2f} GB/s"
    )
    if link.across_hosts and link.latency_s > FAST_NETWORK_S:
        step = "if the site has a fast network, load its MPI: one from PyPI goes by TCP"
        return Finding("note", "links", f"{text}; this looks like Ethernet", step)
    return Finding("ok", "links", text)


def _check_cuda(world: World) -> Finding:
    """Last of all, since a library that is wrong about itself may end the process."""
    import torch

    from parse_mpi.exchange.probe import says_cuda_aware, wrong_from_device

    if not world.all_agree(says_cuda_aware()):
        return Finding("ok", "GPU memory", "MPI takes none (not CUDA-aware); rows go through pinned host memory")
    if not world.all_agree(torch.cuda.is_available()):
        return Finding("ok", "GPU memory", "MPI says it takes it (CUDA-aware); no GPU here to try it with")
    if wrong := wrong_from_device(world, torch.device("cuda", torch.cuda.current_device())):
        text = f"MPI says it takes it (CUDA-aware), but: {'; '.join(wrong[:4])}"
        return Finding("note", "GPU memory", text, "nothing to do: rows go through pinned host memory")
    return Finding("ok", "GPU memory", "MPI takes it (CUDA-aware); rows go through pinned host memory all the same")
