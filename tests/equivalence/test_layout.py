"""Layout invariance (design rule 1): the number of ranks decides nothing that an agent computes."""

import numpy as np
import pytest
from real_runs import differences, parameter_distance, result, train
from small_jobs import ADAPTIVE, write_dataset, write_job

from parse_mpi.storage.metrics import read_metrics

RANKS = (1, 2, 3, 4)
JOBS = {
    "ring": {"train": {"rounds": 12, "local_steps": 2}},
    "gossip, mixed order of kinds": {
        "topology": {"kind": "random-gossip"},
        "agents": [
            {"modalities": ["top", "bottom"], "count": 3},
            {"modalities": ["bottom"], "count": 3},
            {"modalities": ["bottom", "top"], "count": 2},
            {"modalities": ["top"], "count": 3},
        ],
    },
    "adaptive widths": {"method": {"slices": ADAPTIVE}, "train": {"order": "consensus"}},
    "three modalities, induced": {
        "topology": {"kind": "erdos-renyi", "probability": 0.5, "scope": "induced", "allow_disconnected": True},
        "agents": [{"modalities": kind, "count": 2} for kind in (["a"], ["b", "c"], ["a", "c"], ["a", "b", "c"])],
    },
}


@pytest.mark.parametrize("job", JOBS)
def test_exact_gives_the_same_bits_on_any_number_of_ranks(tmp_path, job):
    changes = JOBS[job] | {"mode": "exact"}
    if "three" in job:
        changes["data"] = {"source": {"hdf5": str(write_dataset(tmp_path / "abc.h5"))}}
    path = write_job(tmp_path, changes)
    for ranks in RANKS:
        train(path, tmp_path / f"on-{ranks}", ranks)
    expected = result(tmp_path / "on-1")
    assert {"rounds/loss", "evaluations/accuracy", "evaluations/consensus_distance"} < expected.keys()
    for ranks in RANKS[1:]:
        assert differences(expected, result(tmp_path / f"on-{ranks}")) == [], f"{ranks} ranks"
        assert read_metrics(tmp_path / f"on-{ranks}")["ranks/sent_bytes"].sum() > 0


def test_fast_agrees_across_ranks_and_with_exact_after_50_rounds(tmp_path):
    path = write_job(tmp_path, {"train": {"rounds": 50}, "evaluate": {"every": 25}})
    train(path, tmp_path / "exact", 1, "--set", "mode=exact")
    reference = result(tmp_path / "exact")
    assert np.isfinite(reference["rounds/loss"]).all()
    for ranks in RANKS:
        train(path, tmp_path / f"on-{ranks}", ranks)
        assert parameter_distance(reference, result(tmp_path / f"on-{ranks}")) <= 1e-4


def test_neighbourhood_collectives_and_pairs_of_messages_give_the_same_bits(tmp_path):
    path = write_job(tmp_path, {"mode": "exact"})
    for via in ("neighbour", "p2p"):
        train(path, tmp_path / via, 3, "--set", f"exchange={via}")
    assert differences(result(tmp_path / "neighbour"), result(tmp_path / "p2p")) == []
