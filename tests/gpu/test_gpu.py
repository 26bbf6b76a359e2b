"""What only a GPU can show; docs/cluster.md says how to run it. One GPU is enough, whatever else the host has."""

import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launch import run
from mixing_cases import Mixer, draw_cases
from mpi4py import MPI
from plain_parse import PlainParse
from real_runs import parameter_distance, result, train
from small_jobs import make_trainer, write_job

from parse_mpi.exchange import mixing
from parse_mpi.exchange.routing import make_route
from parse_mpi.exchange.world import World
from parse_mpi.job import Topology
from parse_mpi.run.consensus import consensus_distances
from parse_mpi.run.doctor import check_torch
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.topology.slice_graph import slice_graph

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason=f"PyTorch {torch.__version__} sees no GPU"),
    # Autograd's own thread may use cuBLAS before anything else; it then makes itself a context, as it should.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]

GPU = "cuda:0"
MIB = 1 << 20
LIMIT_S = 300.0  # a launch on a cold machine first loads gigabytes of CUDA libraries
BOUNDS = {"float32": 1e-4, "float64": 1e-9}  # relative Frobenius norm per slice after 20 rounds
MIXING_BOUNDS = {"float32": 1e-6, "float64": 1e-13}  # the same after 3 rounds of mixing
LEARNT = {
    "fusion": "gated",
    "slices": {"unique": 8, "redundant": 12, "synergistic": 4},
    "modality_weighting": "adaptive",
    "beta_schedule": {"kind": "adaptive", "every": 4},
}
JOBS = {
    "ring": {},
    "gossip, several local steps": {"topology": {"kind": "random-gossip"}, "train": {"local_steps": 2}},
    "gates, projectors, learnt weights": {"method": LEARNT},
    "attention": {"method": {"fusion": "attention"}},
}


@pytest.fixture(autouse=True)
def one_gpu_at_full_precision(monkeypatch):
    """No TF32 in this process; launches see one GPU, so that their ranks must share it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


# -- in this process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_engines_equal_plain_modules_on_the_cpu(tmp_path, engine, dtype, job):
    trainer, plan, dataset = make_trainer(tmp_path, JOBS[job] | {"engine": engine, "dtype": dtype}, device=GPU)
    plain = PlainParse(plan, dataset)
    for k in range(20):
        trainer.train_round(k)
        plain.round(k)
    for name, rows in trainer.now.group.slices.items():
        assert str(rows.source.device) == GPU
        mine, expected = rows.local.double().cpu().numpy()[np.argsort(rows.agents)], plain.parameters(name)
        assert np.linalg.norm(mine - expected) <= BOUNDS[dtype] * np.linalg.norm(expected), name


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_evaluation_equals_that_on_the_cpu(tmp_path, engine):
    made = []
    for device in ("cpu", GPU):
        trainer, plan, _ = make_trainer(tmp_path, {"engine": engine, "dtype": "float64"}, device=device)
        for k in range(4):
            trainer.train_round(k)
        distances = consensus_distances(trainer.world, plan, trainer.now.group)
        made.append((trainer.now.evaluator.accuracy(), list(distances.values())))
    (accuracy, distance), (accuracy_gpu, distance_gpu) = made
    np.testing.assert_array_equal(accuracy_gpu, accuracy)
    np.testing.assert_allclose(distance_gpu, distance, rtol=1e-9)


@pytest.mark.parametrize("dtype", MIXING_BOUNDS)
def test_mixing_is_the_dense_product(dtype):
    for case in draw_cases(ranks=1):
        mixer = Mixer(World(MPI.COMM_SELF), case, dtype=dtype, device=GPU)
        exact = {name: x.astype(dtype).astype(np.float64) for name, x in case.values.items()}
        for r in range(3):
            mixer.round(r)
            W = case.graph.at(r).dense()
            for name, x in mixer.values().items():
                exact[name] = W @ exact[name]
                bound = MIXING_BOUNDS[dtype] * np.linalg.norm(exact[name])
                assert np.linalg.norm(x - exact[name]) <= bound, case
        mixer.exchange.free()


def test_mixing_in_blocks_bounds_its_scratch_memory(monkeypatch):
    monkeypatch.setitem(mixing.BLOCK_BYTES, torch.device(GPU).type, MIB)
    agents = np.arange(64)
    graph = slice_graph("graph", (tuple(agents.tolist()),), Topology(kind="ring"), 0, len(agents))
    route = make_route(graph.at(0), np.zeros_like(agents), 0, agents.tolist())
    x = np.random.default_rng(0).normal(size=(len(agents), 1 << 18)).astype(np.float32)
    values = torch.from_numpy(x).to(GPU)  # 64 MiB
    change = torch.empty_like(values)
    sums = mixing.DeviceRoute.of(route, values.dtype, values.device).interior
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    mixing.add_differences(values, change, sums)
    assert torch.cuda.max_memory_allocated(GPU) - before <= 6 * MIB
    expected = graph.at(0).dense() @ x - x
    assert np.linalg.norm(change.cpu().numpy() - expected) <= 1e-6 * np.linalg.norm(expected)


def test_memory_does_not_grow_over_rounds(tmp_path):
    """Gossip, so that routes are made anew every round, with an evaluation in each."""
    trainer, *_ = make_trainer(tmp_path, JOBS["gossip, several local steps"], device=GPU)

    def used(rounds):
        gc.collect()
        torch.cuda.reset_peak_memory_stats(GPU)
        for k in rounds:
            trainer.train_round(k)
            trainer.now.evaluator.accuracy()
        return torch.cuda.memory_allocated(GPU), torch.cuda.max_memory_allocated(GPU), torch.cuda.memory_reserved(GPU)

    used(range(10))  # what cuBLAS and the allocator take once
    early, late = used(range(10, 20)), used(range(20, 60))
    assert late[0] <= early[0] + MIB
    assert late[1] <= early[1] + MIB
    assert late[2] <= early[2] + 32 * MIB  # the allocator takes 2 or 20 MiB at a time


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("job", JOBS)
def test_stacked_gradients_never_wait_for_the_gpu(tmp_path, job):
    trainer, *_ = make_trainer(tmp_path, JOBS[job] | {"engine": "stacked"}, device=GPU)
    group = trainer.now.group
    position, mask = (torch.from_numpy(a).to(GPU) for a in group.sampler.batch(0))
    arguments = group.samples, position, mask, group.alignment.current(0), lambda: None
    group.engine.gradients(*arguments)  # the first call may wait, for libraries to load
    torch.cuda.set_sync_debug_mode("error")
    try:
        group.engine.gradients(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_doctor_names_the_gpu():
    found = list(check_torch())
    assert [finding.level for finding in found] == ["ok"]
    assert torch.cuda.get_device_name(0) in found[0].text


# -- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_rows_travel_through_pinned_memory_and_mix_to_the_bits_of_a_cpu(tmp_path, ranks):
    """Also whichever rows are interior and whichever wait for a neighbour on another rank."""
    script = str(Path(__file__).with_name("mix_on_ranks.py"))
    outcome = run(ranks, [sys.executable, "-m", "mpi4py", script, GPU], tmp_path / "logs", LIMIT_S)
    assert outcome.code == 0, outcome
    assert all("same bits" in log for log in outcome.logs), outcome


def test_two_ranks_share_one_gpu(tmp_path):
    path = write_job(tmp_path, {"dtype": "float64", "device": torch.device(GPU).type})
    one, two = tmp_path / "one", tmp_path / "two"
    train(path, one, 1, limit_s=LIMIT_S)
    outcome = train(path, two, 2, limit_s=LIMIT_S)
    assert devices(two) == [[GPU, GPU]]
    assert f"ranks [0, 1] share {GPU}" in outcome.logs[0]
    assert read_metrics(two)["ranks/sent_bytes"].sum() > 0
    assert parameter_distance(result(one), result(two)) <= BOUNDS["float64"]


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device(tmp_path, first, second):
    path = write_job(tmp_path, {"dtype": "float64"})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(path, whole, 1, "--set", "device=cpu", limit_s=LIMIT_S)
    train(path, parts, 1, "--set", f"device={first}", "--stop-after", "6", limit_s=LIMIT_S)
    outcome = train(path, parts, 1, "--set", f"device={second}", limit_s=LIMIT_S)
    assert "resuming after round 6" in outcome.logs[0]
    assert [[seat.partition(":")[0] for seat in launch] for launch in devices(parts)] == [[first], [second]]
    assert parameter_distance(result(whole), result(parts)) <= BOUNDS["float64"]


def devices(out):
    """The device of every rank, launch by launch."""
    launches = yaml.safe_load((out / "provenance.yaml").read_text())
    return [[seat["device"] for seat in launch["ranks"]] for launch in launches]
