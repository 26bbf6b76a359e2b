"""Which device each rank computes on, and the map of ranks that is printed and checked at the start."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from mpi4py import MPI

from parse_mpi.errors import LaunchError, counted
from parse_mpi.exchange.host import usable_cores
from parse_mpi.exchange.world import World


@dataclass(frozen=True)
class Seat:
    """Where one rank sits. local_rank, local_size: among the ranks of its host; device: `cpu` or `cuda:K`.

    slurm_local_rank: what Slurm takes for local_rank, -1 where srun did not start the rank.
    device_id: the GPU's own identity, since where Slurm shows each rank only its own GPU, all of them are `cuda:0`.
    """

    rank: int
    host: str
    local_rank: int
    local_size: int
    device: str
    device_name: str
    device_id: str
    visible_gpus: int
    visible_devices: str
    slurm_local_rank: int
    threads: int
    agents: int


def take_seat(world: World, wanted: str, agents: int) -> tuple[torch.device, list[Seat]]:
    """This rank's device, and the seats of all ranks (the same list everywhere).

    A GPU is chosen by the rank among its host's ranks, not by the world rank, from what CUDA_VISIBLE_DEVICES leaves.
    Raises LaunchError where `wanted` is cuda and there is none, and on all ranks where GPUs would be given out wrongly.
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
        slurm_local_rank=slurm_place(os.environ, world.rank, world.size),
        visible_gpus=count,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES", "all") if count else "",
        threads=threads,
        agents=agents,
    )
    seats = [Seat(**values) for values in world.all_json(asdict(seat))]
    if any(seat.device_id for seat in seats) and (wrong := misplaced(seats)):
        raise LaunchError(wrong[0])
    return device, seats


def slurm_place(environment: Mapping[str, str], rank: int, size: int) -> int:
    """The number that Slurm gave this rank among those on its node; -1 where srun did not start it.

    Ranks of a launcher inside a step inherit the numbers of what srun has started, one for each node.
    """
    names = ("SLURM_LOCALID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    local, task, tasks = (int(environment[n]) if environment.get(n, "").isdecimal() else -1 for n in names)
    return local if "SLURM_STEP_ID" in environment and (task, tasks) == (rank, size) else -1


def misplaced(seats: Sequence[Seat]) -> list[str]:
    """Where Slurm and the shared memory of MPI disagree about the places of ranks on a node."""
    wrong = [s for s in seats if s.slurm_local_rank not in (-1, s.local_rank)]
    listed = "; ".join(
        f"rank {s.rank} on {s.host} is number {s.slurm_local_rank} there for Slurm, {s.local_rank} for MPI"
        for s in wrong[:4]
    )
    why = "GPUs are given out by that number: start ranks by srun itself, with all of a node in one container"
    return [f"{listed}{f', and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. {why}"] if wrong else []


def seat_lines(seats: list[Seat]) -> list[str]:
    """One line a rank: rank, host, device, threads, agents."""
    return [
        f"rank {s.rank:>3}  {s.host}  {s.device} ({s.device_name})  "
        f"{counted(s.threads, 'thread')}  {counted(s.agents, 'agent')}"
        for s in seats
    ]


def oversubscription(seats: list[Seat]) -> list[str]:
    """Warnings where ranks share a GPU or leave one idle, or a host has fewer cores than compute threads."""
    warnings = misplaced(seats)
    for host in dict.fromkeys(seat.host for seat in seats):
        here = [seat for seat in seats if seat.host == host]
        for device_id in dict.fromkeys(seat.device_id for seat in here if seat.device_id):
            sharing = [seat for seat in here if seat.device_id == device_id]
            if len(sharing) > 1:
                ranks = [seat.rank for seat in sharing]
                warnings.append(
                    f"{host}: ranks {ranks} share {sharing[0].device}; start one rank per GPU for full speed"
                )
        used, seen = len({seat.device_id for seat in here if seat.device_id}), max(s.visible_gpus for s in here)
        if 0 < used < seen:
            warnings.append(f"{host}: {used} of {seen} GPUs are used; start {seen} ranks there")
        threads, cores = sum(seat.threads for seat in here), usable_cores()
        if host == socket.gethostname() and threads > cores:
            warnings.append(
                f"{host}: {len(here)} ranks use {threads} threads on {cores} cores; start fewer ranks or lower "
                "OMP_NUM_THREADS"
            )
    return warnings
