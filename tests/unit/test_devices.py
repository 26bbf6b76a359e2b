"""Which device a rank takes, with GPUs that are only pretended, and what is said where there is none."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from launch import child_environment
from mpi4py import MPI
from small_jobs import write_job

from parse_mpi.errors import LaunchError
from parse_mpi.exchange.devices import Seat, misplaced, oversubscription, slurm_place, take_seat
from parse_mpi.exchange.world import World


class Node:
    """Stands for a communicator in which this is rank `rank` of `size` on its host."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def Split_type(self, _):
        return self

    def Free(self):
        pass


def world_of(rank, size):
    world = World(MPI.COMM_SELF)
    world.rank = rank
    world.comm = Node(rank, size)
    world.all_json = lambda value: [value]
    return world


def seat(local_rank, device="cpu", device_id="", host="host", slurm=-1, gpus=0):
    return Seat(local_rank, host, local_rank, 2, device, "", device_id, gpus, "", slurm, threads=0, agents=1)


@pytest.fixture
def pretended_gpus(monkeypatch):
    """Two GPUs; the list holds what was made the current device."""
    current = []
    for name, value in {
        "device_count": lambda: 2,
        "get_device_name": lambda device: "Pretended",
        "get_device_properties": lambda device: SimpleNamespace(uuid=f"uuid-{device.index}"),
        "set_device": current.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return current


@pytest.mark.parametrize(("rank", "index"), [(0, 0), (1, 1), (2, 0), (3, 1)])
@pytest.mark.parametrize("wanted", ["cuda", "auto"])
def test_ranks_of_a_host_take_its_gpus_in_turn(pretended_gpus, wanted, rank, index):
    device, seats = take_seat(world_of(rank, 4), wanted, agents=5)
    assert device == torch.device("cuda", index)
    assert pretended_gpus == [device]
    assert (seats[0].device, seats[0].device_id) == (f"cuda:{index}", f"uuid-{index}")


def test_device_cpu_leaves_gpus_alone(pretended_gpus):
    device, seats = take_seat(world_of(0, 1), "cpu", agents=5)
    assert device == torch.device("cpu")
    assert pretended_gpus == []
    assert seats[0].device_id == ""


def test_ranks_share_a_gpu_where_its_identity_is_the_same_whatever_its_number():
    def seats(*device_ids):
        return [seat(k, "cuda:0", device_id) for k, device_id in enumerate(device_ids)]

    assert oversubscription(seats("a", "b")) == []
    assert oversubscription(seats("a", "a")) == [
        "host: ranks [0, 1] share cuda:0; start one rank per GPU for full speed"
    ]


def test_device_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(LaunchError, match=r"sees no GPU \(CUDA_VISIBLE_DEVICES=''\)"):
        take_seat(world_of(0, 1), "cuda", agents=5)
    assert take_seat(world_of(0, 1), "auto", agents=5)[0] == torch.device("cpu")


def test_the_command_line_says_what_to_do_without_a_gpu(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "parse_mpi", "run", write_job(tmp_path), "--out", out, "--set", "device=cuda"]
    hidden = child_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([os.fspath(part) for part in command], capture_output=True, text=True, env=hidden)
    assert done.returncode == LaunchError.exit_code
    assert "device: cuda, but PyTorch" in done.stderr
    assert "set device: auto" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


BY_SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


def test_the_place_that_slurm_gave_is_known_only_where_srun_started_the_rank():
    assert slurm_place(BY_SRUN, rank=3, size=4) == 1
    assert slurm_place(BY_SRUN, rank=3, size=8) == -1  # a launcher inside the step, which has more ranks than tasks
    assert slurm_place(BY_SRUN, rank=2, size=4) == -1
    assert slurm_place({k: v for k, v in BY_SRUN.items() if k != "SLURM_STEP_ID"}, rank=3, size=4) == -1
    assert slurm_place({}, rank=0, size=1) == -1


def test_ranks_that_slurm_and_mpi_place_differently_are_named():
    """As with a container for each rank: each is the first of its own shared memory."""
    assert misplaced([seat(0, slurm=0), seat(1, slurm=1), seat(0, host="other", slurm=0)]) == []
    (told,) = oversubscription([seat(0, slurm=0), seat(0, slurm=1)])
    assert "rank 0 on host is number 1 there for Slurm, 0 for MPI" in told


def test_gpus_are_not_given_out_by_places_that_are_wrong(pretended_gpus, monkeypatch):
    for name, value in (BY_SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    world = world_of(0, 1)
    world.size = 1
    with pytest.raises(LaunchError, match="number 1 there for Slurm, 0 for MPI"):
        take_seat(world, "auto", agents=1)
    assert take_seat(world, "cpu", agents=1)[0] == torch.device("cpu")


def test_a_gpu_that_no_rank_uses_is_told():
    (told,) = oversubscription([seat(0, "cuda:0", "a", gpus=4), seat(1, "cuda:1", "b", gpus=4)])
    assert told == "host: 2 of 4 GPUs are used; start 4 ranks there"
    own = [seat(0, "cuda:0", "a", gpus=1), seat(1, "cuda:0", "b", gpus=1)]
    assert oversubscription(own) == []
