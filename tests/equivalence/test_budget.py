"""A budget per link in whole runs: restarts, ranks, metrics, and what `check` says."""

import json

import numpy as np
import pytest
from real_runs import differences, result, train
from small_jobs import make_trainer, write_dataset, write_job

from parse_mpi.errors import JobError
from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.metrics import read_metrics


def changes(folder, **exchange):
    """A small job of three modalities in mode exact with these keys of `exchange`."""
    return {
        "mode": "exact",
        "data": {"source": {"hdf5": str(write_dataset(folder / "abc.h5"))}},
        "agents": [{"modalities": kind, "count": 2} for kind in (["a"], ["b", "c"], ["a", "b", "c"])],
        "topology": {"kind": "base-k", "k": 1},
        "train": {"rounds": 12, "batch_size": 16},
        "checkpoint": {"every": 5, "keep": 9},
        "exchange": exchange,
    }


def test_priority_survives_a_restart_on_another_rank_count(tmp_path):
    """The weights that the rounds so far gave the slices come from the checkpoint; all bits are as without a stop."""
    job = changes(tmp_path, budget_bytes_per_link=900, turns="priority", reweigh_every=3)
    job["train"]["order"] = "consensus"
    path, whole, parts = write_job(tmp_path, job), tmp_path / "whole", tmp_path / "parts"
    train(path, whole, 1)
    train(path, parts, 2, "--stop-after", "5")
    train(path, parts, 3)
    assert differences(result(whole), result(parts)) == []
    weights = [load(parts, r) for r in (5, 10, 12)]
    assert weights == [load(whole, r) for r in (5, 10, 12)]
    assert len(set(weights[0].values())) > 2
    assert weights[0] != weights[1]
    check_metrics(parts)


def load(out, round_index):
    """The weights of slices that a checkpoint names."""
    manifest = json.loads((out / "checkpoints" / f"round-{round_index:06d}" / "manifest.json").read_text())
    return json.loads(manifest["header"]["slice_weights"])


def check_metrics(out):
    """What travelled and what waited are whole rows on the links of the round."""
    metrics, (checkpoint, _) = read_metrics(out), load_newest(out)
    payload, waiting = metrics["rounds/payload_bytes"], metrics["rounds/waiting_bytes"]
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in metrics["slices/name"]]
    row_bytes = [4 * checkpoint.read(f"slices/{n}/parameters", checkpoint.agents_of(f"slices/{n}/parameters")).shape[1]
                 for n in names]  # fmt: skip
    assert (payload > 0).all(0).any()
    assert (waiting > 0).any()
    links = (payload + waiting) / np.array(row_bytes)
    assert (links == np.round(links)).all()
    assert links.min() >= 0


def test_without_a_budget_nothing_waits_and_a_large_one_changes_no_bit(tmp_path):
    trainers = []
    for name, exchange in {"plain": {}, "large": {"budget_bytes_per_link": 10**6, "turns": "priority"}}.items():
        (tmp_path / name).mkdir()
        trainer, _, _ = make_trainer(tmp_path / name, changes(tmp_path, **exchange))
        for done in range(1, 6):
            trainer.train_round(done - 1)
            trainer._reweigh(done)
            waiting = [e.waiting_bytes(done - 1) for e in trainer.now.exchanges]
            assert not any(any(by_slice.values()) for by_slice in waiting)
        trainers.append(trainer)
    plain, large = (trainer.now.group.slices for trainer in trainers)
    for name, rows in plain.items():
        assert rows.local.numpy().tobytes() == large[name].local.numpy().tobytes()


def test_check_refuses_a_budget_that_some_slice_would_get_nothing_of(tmp_path):
    with pytest.raises(JobError, match=r"(?s)60 bytes are too few for 11 slices.*use 88 or more"):
        make_trainer(tmp_path, changes(tmp_path, budget_bytes_per_link=60))
    make_trainer(tmp_path, changes(tmp_path, budget_bytes_per_link=88))
