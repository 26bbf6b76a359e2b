"""Which device each rank computes on, and the map of ranks that is printed and checked at the start."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass

import torch
from mpi4py import MPI

from parse_mpi.errors import LaunchError, counted
from parse_mpi.exchange.host import usable_cores
from parse_mpi.exchange.world import World


@dataclass(frozen=True)
class Seat:
    """Where one rank sits. local_rank, local_size: among the ranks of its host; device: `cpu` or `cuda:K`.

    device_id: the GPU's own identity, since where Slurm shows each rank only its own GPU, all of them are `cuda:0`.
    """

    rank: int
    host: str
    local_rank: int
    local_size: int
    device: str
    device_name: str
    device_id: str
    visible_devices: str
    threads: int
    agents: int


def take_seat(world: World, wanted: str, agents: int) -> tuple[torch.device, list[Seat]]:
    """This rank's device, and the seats of all ranks (the same list everywhere).

    A GPU is chosen by the rank among its host's ranks, not by the world rank, from what CUDA_VISIBLE_DEVICES leaves.
    Raises LaunchError where `wanted` is cuda and there is none.
    """
    node = world.comm.Split_type(MPI.COMM_TYPE_SHARED)
    local_rank, local_size = node.rank, node.size
    node.Free()
    count = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise LaunchError(
            f"rank {world.rank} on {socket.gethostname()}: device: cuda, but PyTorch {torch.__version__} sees no GPU "
            f"(CUDA_VISIBLE_DEVICES={visible!r}).\nInstall PyTorch's CUDA build, ask Slurm for GPUs (--gpus-per-node), "
            "or set device: auto."
        )
    device = torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    if count:
        torch.cuda.set_device(device)  # so that nothing, pinned memory included, opens a context on another GPU
    threads = torch.get_num_threads()
    seat = Seat(
        rank=world.rank,
        host=socket.gethostname(),
        local_rank=local_rank,
        local_size=local_size,
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if count else f"{os.cpu_count()} cores",
        device_id=str(torch.cuda.get_device_properties(device).uuid) if count else "",
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES", "all") if count else "",
        threads=threads,
        agents=agents,
    )
    return device, [Seat(**values) for values in world.all_json(asdict(seat))]


def seat_lines(seats: list[Seat]) -> list[str]:
    """One line a rank: rank, host, device, threads, agents."""
    return [
        f"rank {s.rank:>3}  {s.host}  {s.device} ({s.device_name})  "
        f"{counted(s.threads, 'thread')}  {counted(s.agents, 'agent')}"
        for s in seats
    ]


def oversubscription(seats: list[Seat]) -> list[str]:
    """Warnings where ranks share a GPU or a host has fewer cores than compute threads."""
    warnings = []
    for host in dict.fromkeys(seat.host for seat in seats):
        here = [seat for seat in seats if seat.host == host]
        for device_id in dict.fromkeys(seat.device_id for seat in here if seat.device_id):
            sharing = [seat for seat in here if seat.device_id == device_id]
            if len(sharing) > 1:
                ranks = [seat.rank for seat in sharing]
                warnings.append(
                    f"{host}: ranks {ranks} share {sharing[0].device}; start one rank per GPU for full speed"
                )
        threads, cores = sum(seat.threads for seat in here), usable_cores()
        if host == socket.gethostname() and threads > cores:
            warnings.append(
                f"{host}: {len(here)} ranks use {threads} threads on {cores} cores; start fewer ranks or lower "
                "OMP_NUM_THREADS"
            )
    return warnings
