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
from parse_mpi.exchange.devices import Seat, oversubscription, take_seat
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
        return [Seat(k, "host", k, 2, "cuda:0", "", device_id, "", 0, 1) for k, device_id in enumerate(device_ids)]

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
