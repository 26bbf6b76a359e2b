"""`parse-mpi plan` as a person reads it: in a narrow terminal, and with what is worth knowing said below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parse_mpi.data.dataset import TEST, TRAIN, Dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.jobfile import load_job
from parse_mpi.plan import Plan, make_plan
from parse_mpi.studies import planview

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
SPARSE_GOSSIP = "topology={kind: random-gossip, base: erdos-renyi, probability: 0.5}"


def make(*overrides: str, ranks: int = 1) -> tuple[Plan, Dataset]:
    jobfile = load_job(QUICKSTART, overrides)
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    return make_plan(jobfile, dataset, ranks), dataset


@pytest.mark.parametrize("overrides", [(), (SPARSE_GOSSIP,)], ids=["ring", "gossip on erdos-renyi"])
def test_eighty_columns_cut_no_word(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planview, "PIPED_WIDTH", 80)
    planview.print_plan(*make(*overrides, ranks=4), all_agents=False)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("…") == out.count("0…9") == 1
    for word in ("unique_head[bottom]", "multimodal", "top+bottom – top+bottom", "parameters", "exchange"):
        assert word in out


def test_one_is_singular(capsys: pytest.CaptureFixture[str]) -> None:
    planview.print_plan(*make("agents=[{modalities: [top], count: 1}]"), all_agents=False)
    assert "1 agent on 1 rank, data digits" in capsys.readouterr().out


def test_what_is_worth_knowing_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan, dataset = make()
    planview.print_plan(plan, dataset, all_agents=False)
    assert "WARNING" not in capsys.readouterr().out
    sevens_unseen = np.where(dataset.labels == 7, TEST, TRAIN).astype(np.uint8)
    monkeypatch.setattr(planview, "MPICH_COMMUNICATORS", 4)
    planview.print_plan(plan, replace(dataset, split=sevens_unseen), all_agents=False)
    out = capsys.readouterr().out
    assert "WARNING: no training sample has the class 7" in out
    assert "WARNING: digits has no validation samples" in out
    assert "communicators: 5, the world" in out
    assert "WARNING: MPICH allows 4 communicators" in out


def test_schedules_say_what_they_lead_to(capsys: pytest.CaptureFixture[str]) -> None:
    planview.print_plan(*make("topology={kind: base-k, k: 1}"), all_agents=False)
    out = capsys.readouterr().out
    assert "base-k, overlay, cycle of 8" in out
    assert "graph all agents: the exact average after 8 rounds of mixing" in out
    planview.print_plan(*make("topology={kind: matcha, base: ring, budget: 0.5, lazy: true}"), all_agents=False)
    out = capsys.readouterr().out
    assert "lazy matcha of ring, overlay" in out
    assert "graph all agents, 30 agents: 2 matchings, each active with probability 0.50, alpha 0." in out
