"""Values that are not finite: none is sent or saved; the run stops with a name, or goes on without the agent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import run
from rank_tests import run_rank_tests
from real_runs import command, differences, result, train
from small_jobs import Quiet, make_trainer, write_job

from parse_mpi.agents.group import AgentGroup
from parse_mpi.errors import NonFiniteError, StorageError
from parse_mpi.jobfile import job_digest, load_job
from parse_mpi.run import recorder
from parse_mpi.run.nonfinite import newly_broken
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.summary import accuracy_table
from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.metrics import read_metrics, write_table
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.studies.recorded import RecordedRun

# An encoder that gives NaN from some round on, whatever it sees: its clock moves by lr in every step.
FUSE = """
import torch
from torch import nn

class Tick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, clock):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones(1, dtype=gradient.dtype)

class Fuse(nn.Module):
    def __init__(self, features, width):
        super().__init__()
        self.map, self.norm = nn.Linear(features, width), nn.LayerNorm(width)
        self.clock = nn.Parameter(torch.zeros(1))
        self.width = width

    def forward(self, x):
        h = Tick.apply(self.norm(self.map(x.flatten(1))), self.clock)
        return torch.where(self.clock.detach() < -0.65, torch.nan, h).relu()

def make(shape, width=16):
    return Fuse(shape[0] * shape[1], width)
"""
FUSED = {
    "mode": "exact",
    "agents": [
        {"modalities": ["top"], "count": 1, "encoders": {"top": {"kind": "own", "factory": "fuse.make"}}},
        {"modalities": ["top"], "count": 2},
        {"modalities": ["bottom"], "count": 3},
        {"modalities": ["top", "bottom"], "count": 4},
    ],
    "train": {"batch_size": 16, "optimiser": {"lr": 0.1, "momentum": 0.0}},
    "evaluate": {"every": 2},
    "checkpoint": {"every": 3},
}
ISOLATE = ("--set", "train.on_nonfinite=isolate")
LAST = 8  # the round in which agent 0 diverges


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that stops, goes on without agent 0 and then on other ranks again; and one that never stopped."""
    folder = tmp_path_factory.mktemp("fused")
    (folder / "fuse.py").write_text(FUSE)
    path, parts, whole = write_job(folder, FUSED), folder / "parts", folder / "whole"
    stopped = run(2, command(path, parts), folder / "stopped", 120)
    state = RunDirectory(parts).read_state()
    newest = load_newest(parts)[0].round_index
    again = train(path, parts, 1, *ISOLATE, "--stop-after", str(LAST))
    end = train(path, parts, 3)  # who is cut off stays so, whatever the job says now
    train(path, whole, 1, *ISOLATE)
    return {
        "stopped": stopped, "state": state, "newest": newest, "again": again, "end": end, "parts": parts, "whole": whole
    }  # fmt: skip


def test_a_run_stops_and_says_who_where_and_what_next(runs):
    assert runs["stopped"].code == 6
    assert "round 8: not finite: agent 0 (top, rank 0): loss ensemble, heads" in runs["stopped"].logs[0]
    assert "--set train.on_nonfinite=isolate" in runs["stopped"].logs[0]
    assert (runs["state"].status, runs["state"].exit_code, runs["state"].round) == ("failed", 6, 6)
    assert "round 8: not finite: agent 0 (top, rank 0)" in runs["state"].reason
    assert runs["newest"] == 6


def test_it_can_go_on_without_the_agent_and_ends_like_a_run_that_never_stopped(runs):
    log = runs["again"].logs[0]
    assert "WARNING: round 8: not finite: agent 0 (top, rank 0): loss ensemble, heads. CUT OFF" in log
    assert "cut off before (train.on_nonfinite: isolate): agent 0 since round 8" in runs["end"].logs[0]
    assert "round 8: isolate: agent 0" in runs["end"].logs[0]
    assert differences(result(runs["whole"]), result(runs["parts"])) == []


def test_who_is_cut_off_is_away_in_checkpoints_and_metrics(runs):
    metrics = read_metrics(runs["parts"])
    losses, evaluated = metrics["rounds/loss"][:, :, 0], metrics["evaluations/round"]
    assert np.isfinite(losses[:, 1:]).all()
    np.testing.assert_array_equal(np.isfinite(losses[:, 0]), np.arange(1, 13) < LAST)
    ensemble = metrics["evaluations/accuracy"][:, :, 1, 0, 0]
    assert np.isfinite(ensemble[:, 1:]).all()
    np.testing.assert_array_equal(np.isfinite(ensemble[:, 0]), evaluated <= LAST)
    assert metrics["eras/start"].tolist() == [0, LAST]
    assert metrics["eras/what"].tolist() == ["", "isolate: agent 0"]
    assert metrics["eras/kind"][:, :2].tolist() == [["top", "top"], ["", "top"]]
    assert (metrics["isolations/round"].tolist(), metrics["isolations/agent"].tolist()) == ([LAST], [0])
    checkpoint, _ = load_newest(runs["parts"])
    assert json.loads(checkpoint.header["isolated"]) == [[LAST, 0]]
    assert all(0 not in checkpoint.agents_of(name) for name in checkpoint.names())
    recorded = RecordedRun.read(runs["parts"])
    assert [0 in graphs["top"].agents for graphs in recorded.graphs] == [True, False]
    assert "away in this round: 1 agent" in str(accuracy_table(metrics).caption)
    distance = metrics["evaluations/consensus_distance"]
    slices = np.array(recorded.labels("evaluations/consensus_distance", "component"))
    for row in distance[:, slices == "redundant_head"]:  # all agents before, the others after
        assert np.isfinite(row).sum() == 1


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_inside_ranks(ranks, tmp_path):
    verdict = run_rank_tests([Path(__file__).with_name("ranks_nonfinite.py")], ranks, tmp_path, hang_s=120, limit_s=180)
    assert verdict.passed, verdict.text


def test_it_is_no_part_of_the_trajectory(tmp_path):
    path = write_job(tmp_path)
    stop, isolate = (load_job(path, [f"train.on_nonfinite={choice}"]).job for choice in ("stop", "isolate"))
    assert job_digest(stop) == job_digest(isolate)


# -- the plan without them -------------------------------------------------------------------------------------------

EVENTS = [
    {"kind": "leave", "round": 2, "agents": [3, 4]},
    {"kind": "lose", "round": 3, "agents": [6], "modality": "top"},
    {"kind": "join", "round": 4, "agents": [3, 4]},
    {"kind": "gain", "round": 5, "agents": [6], "modality": "top"},
]


def holders(plan):
    return {era.start: [agent.id for agent in era.agents if agent.modalities] for era in plan.eras}


def test_events_no_longer_concern_who_was_cut_off(tmp_path):
    _, plan, _ = make_trainer(tmp_path, {"events": EVENTS})
    after = plan.without([(1, 3), (3, 6)])
    everyone = set(range(10))
    assert {start: set(ids) for start, ids in holders(after).items()} == {
        0: everyone, 1: everyone - {3}, 2: everyone - {3, 4}, 3: everyone - {3, 4, 6}, 4: everyone - {3, 6},
        5: everyone - {3, 6},
    }  # fmt: skip
    assert [era.what for era in after.eras] == [
        (), ("isolate: agent 3",), ("leave: agent 4",), ("isolate: agent 6",), ("join: agent 4",), ()
    ]  # fmt: skip
    assert after.isolated == ((1, 3), (3, 6))
    assert after.digest == plan.digest
    for era in after.eras:
        for spec in era.slices:
            assert set(spec.holders) <= set(holders(after)[era.start])
    assert {spec.name for era in after.eras for spec in era.slices} <= {s.name for era in plan.eras for s in era.slices}


def test_slices_keep_their_names_when_a_family_never_comes(tmp_path):
    """Agent 0 would have brought the second family; without it the third one is still the third."""
    kinds = [
        {"modalities": ["bottom"], "count": 1, "encoders": {"top": {"kind": "mlp", "hidden": [6]}}},
        {"modalities": ["top"], "count": 2},
        {"modalities": ["bottom"], "count": 2, "encoders": {"top": {"kind": "mlp", "hidden": [5]}}},
    ]
    events = [
        {"kind": "gain", "round": 4, "agents": [0], "modality": "top"},
        {"kind": "gain", "round": 5, "agents": [3, 4], "modality": "top"},
    ]
    _, plan, _ = make_trainer(tmp_path, {"agents": kinds, "events": events})
    named = [
        {spec.name: spec.holders for spec in made.eras[-1].slices if spec.name.startswith("encoder[top")}
        for made in (plan, plan.without([(2, 0)]))
    ]
    assert named[0] == {"encoder[top]": (1, 2), "encoder[top#2]": (0,), "encoder[top#3]": (3, 4)}
    assert named[1] == {"encoder[top]": (1, 2), "encoder[top#3]": (3, 4)}


def test_a_run_without_anybody_ends(tmp_path):
    changes = {
        "agents": [{"modalities": ["top"], "count": 3}],
        "events": [{"kind": "leave", "round": 4, "agents": [2]}],
    }
    _, plan, _ = make_trainer(tmp_path, changes)
    with pytest.raises(NonFiniteError, match="after round 3 no agent"):
        plan.without([(3, 0), (3, 1), (3, 2)])
    with pytest.raises(NonFiniteError, match="after round 4 no agent"):
        plan.without([(3, 0), (3, 1)])


def test_what_falls_apart_is_told_once(tmp_path):
    edges = [[0, 1], [1, 2], [2, 3], [3, 4]]
    changes = {
        "agents": [{"modalities": ["top"], "count": 5}],
        "topology": {"kind": "edge-list", "edges": edges, "scope": "induced"},
    }
    _, plan, _ = make_trainer(tmp_path, changes)
    after = plan.without([(2, 2)])
    told = list(newly_broken(plan, after, 2))
    assert [text for text in told if "'all agents'" in text or "'top'" in text] == told
    assert any(
        "of 4 agents falls apart after round 2 into 2 components: {0, 1} (2); {3, 4} (2)" in text for text in told
    )
    assert list(newly_broken(after, plan.without([(2, 2), (3, 0)]), 3)) == []
    assert list(newly_broken(plan, plan.without([(2, 0)]), 2)) == []


def test_a_disk_that_is_full_when_an_agent_is_cut_off_does_not_lose_who_it_was(tmp_path, monkeypatch):
    changes = {"train": {"rounds": 4, "on_nonfinite": "isolate"}, "checkpoint": {"every": 2}}
    trainer, _, dataset = make_trainer(tmp_path, changes)
    whole, warned = AgentGroup._gradients, []

    def gradients(self, step, poll):
        losses = whole(self, step, poll)
        if step == 2:
            losses[self.ids == 7] = torch.nan
        return losses

    def full_once(run_dir, name, *arguments):
        monkeypatch.setattr(recorder, "write_table", write_table)
        raise StorageError("disk full")

    trainer.recorder.write_tables(dataset)
    monkeypatch.setattr(AgentGroup, "_gradients", gradients)
    monkeypatch.setattr(recorder, "write_table", full_once)
    trainer.listener = Quiet()
    trainer.listener.warn = warned.append
    trainer.train(0, 4, StopRequest())
    trainer.close()
    metrics = read_metrics(tmp_path)
    assert warned[1:] == ["disk full"]
    assert metrics["isolations/agent"].tolist() == [7]
    assert metrics["eras/start"].tolist() == [0, 3]
