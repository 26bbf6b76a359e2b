"""Events in mid-run: against plain modules, on any number of ranks, over restarts and kills, and in the metrics."""

import os
import signal
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from event_cases import CASES, EVENTS, PLAIN, ROUNDS
from launch import Launch
from plain_parse import largest_difference
from rank_tests import run_rank_tests
from real_runs import command, differences, parameter_distance, result, train
from small_jobs import ADAPTIVE, make_trainer, write_dataset, write_job

from parse_mpi.storage.metrics import read_metrics

THREE = [
    {"kind": "lose", "round": 1, "agents": [4], "modality": "b"},
    {"kind": "leave", "round": 2, "agents": [6, 0]},
    {"kind": "gain", "round": 2, "agents": [2], "modality": "c"},
    {"kind": "cut", "round": 3, "modality": "c"},
    {"kind": "cut", "round": 3, "links": [[2, 3], [7, 2]]},
    {"kind": "join", "round": 4, "agents": [6, 0]},
    {"kind": "gain", "round": 5, "agents": [0], "modality": "c"},
    {"kind": "heal", "round": 5, "modality": "c"},
]


def three_modalities(folder):
    kinds = (["a"], ["a", "b"], ["b", "c"], ["a", "b", "c"])
    return {
        "data": {"source": {"hdf5": str(write_dataset(folder / "abc.h5"))}},
        "agents": [{"modalities": held, "count": 2} for held in kinds],
        "topology": {"kind": "complete"},
        "events": THREE,
        "train": {"batch_size": 16, "optimiser": {"momentum": 0.9}},
    }


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("job", ["two modalities", "three modalities", "adaptive widths"])
def test_agents_do_what_plain_modules_do(tmp_path, job, engine):
    """Newcomers start from a neighbour's row, who leaves keeps nothing, momentum goes on where a slice is kept."""
    changes = three_modalities(tmp_path) if "three" in job else {"events": EVENTS, "train": {"batch_size": 24}}
    if "widths" in job:
        changes["method"] = {"slices": ADAPTIVE}
    assert largest_difference(tmp_path, changes | {"dtype": "float64", "engine": engine}, ROUNDS) <= 1e-10


def test_families_keep_their_slices_when_their_first_agents_go(tmp_path):
    """Slices are named by families in the order of the whole run; with another name an agent would lose its rows."""
    kinds = [{"modalities": ["top"], "count": 2, "encoders": {"top": {"kind": "mlp", "hidden": [6]}}}]
    kinds += [{"modalities": ["top"], "count": 3}, {"modalities": ["bottom"], "count": 2}]
    events = [
        {"kind": "leave", "round": 2, "agents": [0, 1]},
        {"kind": "gain", "round": 2, "agents": [5], "modality": "top"},
        {"kind": "join", "round": 4, "agents": [1, 0]},
    ]
    changes = {"agents": kinds, "events": events, "dtype": "float64", "train": {"batch_size": 24}}
    _, plan, _ = make_trainer(tmp_path, changes)
    holders = [{spec.name: spec.holders for spec in era.slices} for era in plan.eras]
    assert [held.get("encoder[top]") for held in holders] == [(0, 1), None, (0, 1)]
    assert [held["encoder[top#2]"] for held in holders] == [(2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5)]
    assert largest_difference(tmp_path, changes, rounds=6) <= 1e-10


def test_graphs_are_those_of_the_holders_without_what_is_cut(tmp_path):
    """A ring among those that hold a slice, less the links that are cut, with Metropolis weights of what is left."""
    _, plan, _ = make_trainer(tmp_path, {"events": EVENTS})
    cut = {6: {(1, 2), (3, 8), (4, 6)}}
    for era in plan.eras:
        gone = cut[6] if 6 <= era.start < 10 else set()
        assert {spec.modality for spec in era.slices if not spec.graph} == ({"bottom"} if 4 <= era.start < 6 else set())
        for spec in era.slices:
            if spec.graph:
                ring = nx.cycle_graph(spec.holders)
                ring.remove_edges_from([(i, i) for i in spec.holders])
                ring.remove_edges_from(gone)
                weights = {edge: 1 / (1 + max(ring.degree[edge[0]], ring.degree[edge[1]])) for edge in ring.edges}
                off = nx.to_numpy_array(ring, weight=None) * 0
                for (i, j), w in weights.items():
                    a, b = spec.holders.index(i), spec.holders.index(j)
                    off[a, b] = off[b, a] = w
                expected = off + np.diag(1 - off.sum(1))
                np.testing.assert_allclose(era.graphs[spec.graph].at(era.start).dense(), expected, atol=1e-15)
    assert any("top+bottom" not in {agent.kind for agent in era.agents} for era in plan.eras)


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_round_and_every_restart_inside_ranks(ranks, tmp_path):
    verdict = run_rank_tests([Path(__file__).with_name("ranks_events.py")], ranks, tmp_path, hang_s=120, limit_s=180)
    assert verdict.passed, verdict.text


def test_stopped_killed_and_moved_ends_like_a_run_that_was_not(tmp_path):
    path = write_job(
        tmp_path, CASES["everything else at once"] | {"evaluate": {"every": 1}, "checkpoint": {"every": 1}}
    )
    whole, out = tmp_path / "whole", tmp_path / "parts"
    logs = train(path, whole, 1).logs[0]
    assert "round 2: leave: agents 0, 2, 5, 8" in logs
    train(path, out, 3, "--stop-after", "4")
    with Launch(2, command(path, out), tmp_path / "killed") as launch:
        launch.wait_until(lambda: (out / "checkpoints" / "round-000007").exists(), 60)
        for pid in launch.pids():
            os.kill(pid, signal.SIGKILL)
        assert launch.wait(30).code != 0
    train(path, out, 4)
    assert differences(result(whole), result(out)) == []


def test_metrics_say_what_was_when(tmp_path):
    """Absent agents have no figures, all others have; eras, and what they are made of, stand in tables."""
    path = write_job(tmp_path, PLAIN | {"evaluate": {"every": 1}})
    train(path, tmp_path / "exact", 1)
    train(path, tmp_path / "fast", 3, "--set", "mode=fast")
    assert parameter_distance(result(tmp_path / "exact"), result(tmp_path / "fast")) <= 1e-4
    _, plan, _ = make_trainer(tmp_path, PLAIN)
    metrics = read_metrics(tmp_path / "fast")
    here = np.array([[bool(agent.modalities) for agent in plan.at(k).agents] for k in range(ROUNDS)])
    assert 0 < here.mean() < 1
    np.testing.assert_array_equal(np.isfinite(metrics["rounds/loss"]), here[:, :, None].repeat(4, 2))
    ensemble = metrics["evaluations/accuracy"][:, :, :, 0, 0]
    np.testing.assert_array_equal(np.isfinite(ensemble), here[:, :, None].repeat(2, 2))
    assert metrics["eras/start"].tolist() == [era.start for era in plan.eras]
    assert metrics["eras/what"].tolist() == ["; ".join(era.what) for era in plan.eras]
    assert metrics["eras/kind"].tolist() == [[agent.kind for agent in era.agents] for era in plan.eras]
    names = metrics["slices/name"].tolist()
    cut = metrics["rounds/payload_bytes"][:, names.index("encoder[bottom]")] == 0
    assert np.flatnonzero(cut).tolist() == [4, 5, 7]  # in the eighth round its two holders are those of a cut link


def test_momentum_of_what_was_lost_is_forgotten(tmp_path):
    """An agent that loses a modality and gains it again goes on in the slices it kept, and starts at rest elsewhere."""
    events = [
        {"kind": "lose", "round": 2, "agents": [6], "modality": "top"},
        {"kind": "gain", "round": 3, "agents": [6], "modality": "top"},
    ]
    trainer, *_ = make_trainer(tmp_path, {"events": events})
    for done in range(3):
        trainer.enter_era(done)
        trainer.train_round(done)
    before = {name: rows.state["momentum"].clone() for name, rows in trainer.now.group.slices.items()}
    of_6 = {name: rows.agents.tolist().index(6) for name, rows in trainer.now.group.slices.items() if 6 in rows.agents}
    trainer.enter_era(3)
    for name, rows in trainer.now.group.slices.items():
        row = rows.state["momentum"][rows.agents.tolist().index(6)] if 6 in rows.agents else None
        if name in of_6:
            assert row.equal(before[name][of_6[name]])
            assert row.any()
        elif row is not None:
            assert not row.any()
