"""`parse-mpi plan` as a person reads it: in a narrow terminal, and with what is worth knowing said below."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parse_mpi.caveats import caveats
from parse_mpi.data.dataset import TEST, TRAIN, Dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.jobfile import load_job
from parse_mpi.plan import Plan, make_plan
from parse_mpi.run.summary import size_text
from parse_mpi.studies import plannotes, planview, tables
from parse_mpi.studies.memory import first_routes, sent_bytes

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
    monkeypatch.setattr(tables, "PIPED_WIDTH", 80)
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
    monkeypatch.setattr(plannotes, "MPICH_COMMUNICATORS", 4)
    planview.print_plan(plan, replace(dataset, split=sevens_unseen), all_agents=False)
    out = capsys.readouterr().out
    assert "WARNING: no training sample has the class 7" in out
    assert "WARNING: digits has no validation samples" in out
    assert "communicators: 5, the world" in out
    assert "WARNING: MPICH allows 4 communicators" in out


def test_exact_means_are_no_ring(capsys: pytest.CaptureFixture[str]) -> None:
    planview.print_plan(*make("method={name: centralised}"), all_agents=False)
    out = capsys.readouterr().out
    graphs = out.partition("Graphs")[2].partition("Links")[0]
    assert graphs.count("exact mean ") == 3
    assert "ring" not in graphs
    assert "WARNING" not in out


def test_exact_means_of_many_are_warned_of() -> None:
    small = "method={name: centralised, slices: {unique: 1, redundant: 1, synergistic: 1}}"
    plan, dataset = make(small, "agents=[{modalities: [top], count: 700}]", "data.partition={min_per_agent: 1}")
    taken = 700 * 699 * 4 * sum(layout.width for layout in plan.layouts.values())
    (warning,) = caveats(plan, dataset)
    assert f"take the rows of all others, {taken / 1e9:.1f} GB a round in all" in warning


def test_slices_that_never_mix_are_warned_of() -> None:
    """Harmony's second stage has rounds 11 to 15 of 15, and 12 to 16 of 16."""
    for sync_every, rounds, warned in ((10, 15, True), (8, 15, True), (15, 15, False), (16, 16, False), (5, 15, False)):
        harmony = f"method={{name: harmony, sync_every: {sync_every}}}"
        found = caveats(*make(harmony, f"train.rounds={rounds}"))
        words = f"label_head[top+bottom] mixes in rounds that are multiples of {sync_every}, and this run has none"
        assert [words in warning for warning in found] == [True] * warned
    parse = "method={name: parse, fusion: gated, gate_sync: 7}"
    assert caveats(*make(parse, "train.rounds=7")) == []
    assert all("gate[" in warning for warning in caveats(*make(parse, "train.rounds=6")))
    assert len(caveats(*make(parse, "train.rounds=6"))) == 2


def test_schedules_say_what_they_lead_to(capsys: pytest.CaptureFixture[str]) -> None:
    planview.print_plan(*make("topology={kind: base-k, k: 1}"), all_agents=False)
    out = capsys.readouterr().out
    assert "base-k, overlay, cycle of 8" in out
    assert "graph all agents: the exact average after 8 rounds of mixing" in out
    planview.print_plan(*make("topology={kind: matcha, base: ring, budget: 0.5, lazy: true}"), all_agents=False)
    out = capsys.readouterr().out
    assert "lazy matcha of ring, overlay" in out
    assert "graph all agents, 30 agents: 2 matchings, each active with probability 0.50, alpha 0." in out


EVENTS = """events=[
    {kind: join, round: 3, agents: [9]},
    {kind: lose, round: 5, agents: {holding: [bottom, top]}, modality: top},
    {kind: cut, round: 6, links: [[10, 11], [15, 16]]},
    {kind: leave, round: 8, agents: {holding: [top]}},
    {kind: leave, round: 600, agents: [10]}]"""


@pytest.mark.parametrize("width", [80, 160])
def test_eras_stand_in_a_table_and_what_follows_from_them_below(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "PIPED_WIDTH", width)
    planview.print_plan(*make(EVENTS), all_agents=False)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "– (away)" in out
    table = [line.split() for line in out[out.index("Eras (") : out.index("communicators: ")].splitlines()]
    by_start = {line[0]: line for line in table if line and line[0].isdigit()}
    assert list(by_start) == ["0", "3", "5", "6", "8", "600"]
    assert [line[-1] for line in by_start.values()] == ["5", "5", "4", "4", "2", "2"]
    words = " ".join(out.split())
    assert "communicators: 5, the world" in words
    assert "WARNING: train.rounds is 600: what happens after round 600 or later is not part of this run" in words
    assert "WARNING: after round 8 nobody holds top: what was learnt of it is lost" in words
    assert "WARNING: after round 6 graph 'bottom' is in 2 pieces, with links that are cut" in words
    assert words.count("pieces") == 2  # the other graph that is cut up is that of all agents; each is named once


def test_budget_overlap_and_rare_slices_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    plan, dataset = make("exchange.budget_bytes_per_link=20000", "train.order=consensus", "exchange.progress=poll")
    planview.print_plan(plan, dataset, all_agents=False)
    out = capsys.readouterr().out
    due: Counter[tuple[int, ...]] = Counter()
    for name, graph in plan.graphs.items():
        due.update({link: plan.row_bytes(name) for link in map(tuple, graph.links().tolist())})
    size = max(due.values())
    assert "budget: 20.0 kB for a link and round; most is due on " in out
    assert f"{size / 1e3:.1f} kB: {20000 / size:.0%} of it a round" in out
    assert "order: consensus, rows travel while agents learn; exchange.progress: poll" in out
    planview.print_plan(*make("method.fusion=gated", "method.gate_sync=5"), all_agents=False)
    assert "every 5 rounds" in capsys.readouterr().out


def test_placements_are_compared_and_the_chosen_one_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are those that all ranks send in a round, as the table of ranks has them."""
    for chosen in ("share", "contiguous", "minimum-cut"):
        plan, dataset = make(f"placement={chosen}", "topology={kind: torus}", ranks=4)
        planview.print_plan(plan, dataset, all_agents=False)
        out = capsys.readouterr().out
        lines = [line.split() for line in out[out.index("Placements (") : out.index("communicators: ")].splitlines()]
        names = ("share", "contiguous", "round-robin", "by-modality", "minimum-cut")
        rows = {line[0]: line[1:] for line in lines if line and line[0] in names}
        assert tuple(rows) == names
        assert [name for name, cells in rows.items() if cells[0] == "*"] == [chosen]
        sent = [sent_bytes(plan, rank, first_routes(plan, rank)) for rank in range(4)]
        assert " ".join(rows[chosen][1:5]) == f"{size_text(sum(sent))} {size_text(max(sent))}"
        assert "between nodes" not in out


def test_with_nodes_the_table_has_bytes_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    jobfile = load_job(QUICKSTART, ["placement=minimum-cut"])
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    plan = make_plan(jobfile, dataset, 3, [0, 0, 1])
    planview.print_plan(plan, dataset, all_agents=False)
    assert "between nodes" in capsys.readouterr().out


def test_one_rank_has_nothing_to_place(capsys: pytest.CaptureFixture[str]) -> None:
    planview.print_plan(*make(), all_agents=False)
    assert "Placements" not in capsys.readouterr().out


def test_every_phase_of_a_cycle_has_its_communicator(capsys: pytest.CaptureFixture[str]) -> None:
    plan, dataset = make("topology={kind: one-peer-exponential}")
    planview.print_plan(plan, dataset, all_agents=False)
    phases = sum(graph.phases for graph in plan.graphs.values())
    assert phases > len(plan.graphs)
    assert f"communicators: {phases + 1}, the world and one per phase" in capsys.readouterr().out
