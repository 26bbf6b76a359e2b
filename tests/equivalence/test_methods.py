"""Every method ends with the same bits on 1, 2 and 3 ranks, also when it is stopped and goes on on other ranks."""

from pathlib import Path

import pytest
import yaml
from method_cases import METHODS, method_of
from rank_tests import run_rank_tests

IN_RANKS = Path(__file__).with_name("ranks_combinations.py")

# One case of each way in which a method has to do with ranks; the others differ in networks and scopes.
SAMPLE = (
    "dsgd-modality", "dsgd-modality-exact", "harmony", "monolithic-pcgrad", "sheaf-dmfl", "fedepa", "dmml-kd-balance",
)  # fmt: skip

# Agents that gain and lose a sensor in mid-run, and some samples without a label.
JOB = {
    "name": "small",
    "data": {
        "source": {"pid": {"samples": 240, "features": 6}},
        "partition": {"kind": "dirichlet", "alpha": 2},
        "labelled_fraction": 0.7,
    },
    "agents": [
        {"modalities": ["first"], "count": 2},
        {"modalities": ["second"], "count": 2},
        {"modalities": ["first", "second"], "count": 3},
    ],
    "topology": {"kind": "random-gossip"},
    "events": [
        {"kind": "lose", "round": 2, "agents": [6], "modality": "first"},
        {"kind": "gain", "round": 3, "agents": [1], "modality": "second"},
    ],
    "encoder": {"kind": "mlp", "hidden": [5]},
    "train": {"rounds": 5, "batch_size": 16, "optimiser": {"lr": 0.1}},
    "evaluate": {"every": 1},  # a stop evaluates the round that it ends with
    "checkpoint": {"every": 5},
    "mode": "exact",
}


@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(tuple(METHODS), marks=pytest.mark.soak)], ids=["some", "all"])
def test_methods_end_the_same_on_any_ranks_and_after_restarts(cases, tmp_path, monkeypatch):
    for case in cases:
        (tmp_path / f"{case}.yaml").write_text(yaml.safe_dump(JOB | {"method": method_of(case)}))
    monkeypatch.setenv("DRAWN_JOBS", str(tmp_path))
    verdict = run_rank_tests([IN_RANKS], 3, tmp_path / "logs", hang_s=60, limit_s=600)
    assert verdict.passed, verdict.text
