"""`parse-mpi plan --predict`: where constants come from, what more nodes bring, and where they stop paying."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling_cases import PLANTED, make_measured, make_scaling
from small_jobs import ROOT_JOBS

from parse_mpi.batch.site import read_site
from parse_mpi.cli import main
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import BatchError
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.run.phases import PHASES
from parse_mpi.scaling import predict
from parse_mpi.scaling.costmodel import CostModel, Demand, crowding, demand_of
from parse_mpi.scaling.loads import Loads, rank_loads
from parse_mpi.scaling.predict import (
    PAYS,
    Costs,
    Outlook,
    Prediction,
    links,
    node_counts,
    outlooks,
    plans_by_topology,
    read_costs,
)
from parse_mpi.scaling.scalingfile import Launched, write_scaling_file
from parse_mpi.studies import tables
from parse_mpi.topology.placement import PLACEMENTS

QUICKSTART = ROOT_JOBS / "quickstart.yaml"
NETWORK = {"messages_between": 2.5e-6, "bytes_between": 1 / 12.5e9}
PART_PHASES = {"local steps": "local_steps", "mixing": "mix", "exchange": "wait"}


def write_site(folder: Path, text: str = "network: {latency_us: 2.5, bandwidth_gb_s: 12.5}\n") -> Path:
    (folder / "site.yaml").write_text(f"partition: long\n{text}")
    return folder / "site.yaml"


def write_costs(folder: Path, hosts_of: dict[int, list[str]], order: str = "adapt-then-combine") -> Path:
    """A scaling.h5 of quickstart's plan on ranks whose parts take what PLANTED says; hosts_of: ranks -> their hosts."""
    jobfile = load_job(QUICKSTART)
    dataset = load_dataset(jobfile.job.data, 0)
    launches = []
    for ranks, hosts in hosts_of.items():
        plan = make_plan(jobfile, dataset, ranks)
        node_of = np.unique(hosts, return_inverse=True)[1]
        loads = rank_loads(plan, plan.rank_of, node_of)
        measured = make_measured(np.zeros((4, ranks, len(PHASES))), hosts, cores=8)
        demand = demand_of(loads, node_of, 1.0)
        for part, phase in PART_PHASES.items():
            measured.seconds[:, :, PHASES.index(phase)] = sum(
                PLANTED[p, name] * demand.amount(name) for p, name in PLANTED if p == part
            ) if ranks > 1 or part != "exchange" else 0.0  # fmt: skip
        launches.append(Launched("strong", ranks, 1, 30, 0, "finished", result=replace(measured, loads=loads)))
    write_scaling_file(folder / "scaling.h5", make_scaling(launches, {"strong": "strong"}, order))
    return folder / "scaling.h5"


ONE_NODE = {1: ["a"], 2: ["a"] * 2, 4: ["a"] * 4, 8: ["a"] * 8}
TWO_NODES = {**ONE_NODE, 6: ["a"] * 3 + ["b"] * 3, 10: ["a"] * 5 + ["b"] * 5, 12: ["a"] * 4 + ["b"] * 4 + ["c"] * 4}


def test_the_network_is_that_of_the_site_where_one_node_was_measured(tmp_path: Path) -> None:
    costs = read_costs(write_costs(tmp_path, ONE_NODE), write_site(tmp_path))
    assert costs.model.network == str(tmp_path / "site.yaml")
    for name, value in NETWORK.items():
        assert costs.model.constants["exchange", name] == pytest.approx(value)
        assert name not in costs.model.ranges
    assert (costs.cores, costs.threads) == (8, 1)


def test_what_was_measured_between_nodes_counts_more_than_the_site(tmp_path: Path) -> None:
    costs = read_costs(write_costs(tmp_path, TWO_NODES), write_site(tmp_path))
    assert costs.model.network == "fitted"
    for name in NETWORK:
        assert costs.model.constants["exchange", name] == pytest.approx(PLANTED["exchange", name], rel=1e-6)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("network: {latency_us: 2}\n", 2, "`network.bandwidth_gb_s` is missing"),
        ("network: {latency_us: -2, bandwidth_gb_s: 1}\n", 2, "`network.latency_us` is -2"),
        ("network:\n  latency: 2\n  latency_us: 2\n  bandwidth_gb_s: 1\n", 3, "did you mean `latency_us`?"),
    ],
)
def test_a_wrong_site_file_is_told_with_its_line(text: str, line: int, what: str, tmp_path: Path) -> None:
    with pytest.raises(BatchError) as raised:
        read_site(write_site(tmp_path, text))
    (problem,) = raised.value.problems
    assert problem.where.endswith(f"site.yaml:{line}")
    assert what in str(problem)


def test_predictions_are_the_sum_of_what_each_part_costs(tmp_path: Path) -> None:
    """Against the planted constants and a plan of that many ranks, with its own routes."""
    costs = read_costs(write_costs(tmp_path, TWO_NODES), None)
    job = load_job(QUICKSTART).job
    dataset = load_dataset(job.data, 0)
    plans, own, unfit = plans_by_topology(QUICKSTART, [], dataset, job)
    assert own == "ring"
    assert next(iter(plans)) == "ring"
    assert not set(plans) & set(unfit)
    assert {"torus", "complete", "random-gossip"} <= set(plans)
    ring, *others = outlooks(plans, own, costs, nodes=3, ranks_per_node=4)
    assert ring.own
    assert not any(outlook.own for outlook in others)
    assert [outlook.placement for outlook in others if outlook.topology == own] == list(PLACEMENTS[1:])
    assert {outlook.topology: outlook.placement for outlook in others if outlook.topology != own} == {
        topology: "share" for topology in plans if topology != own
    }
    for prediction in ring.predictions:
        ranks = prediction.nodes * 4
        plan = make_plan(load_job(QUICKSTART), dataset, ranks)
        node_of = np.arange(ranks) // 4
        demand = demand_of(rank_loads(plan, plan.rank_of, node_of), node_of, crowding(4, 8))
        for part, seconds in prediction.seconds.items():
            expected = sum(PLANTED[p, name] * demand.amount(name) for p, name in PLANTED if p == part)
            assert seconds == pytest.approx(expected, rel=1e-4)
    work = [prediction.seconds["local steps"] for prediction in ring.predictions]
    assert work == sorted(work, reverse=True)
    assert [p.nodes for p in ring.predictions] == [1, 2, 3]
    first, last = ring.predictions[0], ring.predictions[-1]
    assert ring.efficiency(last) == pytest.approx(first.round_s / (3 * last.round_s))


def test_graphs_with_too_many_links_are_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = load_job(QUICKSTART, ["topology=complete", "agents.0.count=4980"]).job
    assert links(crowd) == 25e6
    assert links(load_job(QUICKSTART, ["topology=erdos-renyi"]).job) == pytest.approx(0.3 * 900)
    assert links(load_job(QUICKSTART).job) == 0
    monkeypatch.setattr(predict, "MOST_LINKS", 899)
    costs = write_costs(tmp_path, ONE_NODE)
    assert main(["plan", str(QUICKSTART), "--predict", "1", "--costs", str(costs)]) == 0
    out = capsys.readouterr().out
    assert "complete does not suit this job: too many links to count" in out
    assert "erdos-renyi does not" not in out


def test_a_slower_network_is_never_faster(tmp_path: Path) -> None:
    found = {}
    for name, text in {
        "fast": "latency_us: 1, bandwidth_gb_s: 25",
        "slow": "latency_us: 50, bandwidth_gb_s: 1",
    }.items():
        costs = read_costs(write_costs(tmp_path, ONE_NODE), write_site(tmp_path, f"network: {{{text}}}\n"))
        job = load_job(QUICKSTART).job
        plan = make_plan(load_job(QUICKSTART), load_dataset(job.data, 0), 1)
        found[name], *_ = outlooks({"ring": plan}, "ring", costs, nodes=4, ranks_per_node=2)
    fast, slow = ([p.round_s for p in found[name].predictions] for name in ("fast", "slow"))
    assert fast[0] == slow[0]
    assert all(quick < sluggish for quick, sluggish in zip(fast[1:], slow[1:], strict=True))
    assert found["slow"].pays_up_to <= found["fast"].pays_up_to


def outlook_of(seconds: dict[int, float]) -> Outlook:
    loads = Loads.of(np.zeros((1, 7)))
    made = [Prediction(nodes, nodes, loads, {"local steps": s}, ()) for nodes, s in seconds.items()]
    return Outlook("ring", "by kind", True, tuple(made))


@pytest.mark.parametrize(
    ("seconds", "pays"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0}, 8),
        ({1: 8.0, 2: 4.0, 4: 3.9, 8: 1.0}, 2),
        ({1: 8.0, 2: 9.0}, 1),
        ({1: 8.0}, 1),
        ({1: 8.0, 2: 4.0, 3: 3.4}, 3),  # half a doubling has to bring half as much
        ({1: 8.0, 2: 4.0, 3: 3.7}, 2),
    ],
)
def test_nodes_pay_as_long_as_every_doubling_does(seconds: dict[int, float], pays: int) -> None:
    assert PAYS == 1.25
    assert outlook_of(seconds).pays_up_to == pays


@given(st.integers(1, 5000))
def test_node_counts_double_up_to_what_was_asked_for(most: int) -> None:
    counts = node_counts(most)
    assert counts[0] == 1
    assert counts[-1] == most
    assert counts == sorted(set(counts))
    assert all(there <= 2 * here for here, there in pairwise(counts))


def test_the_command_says_what_it_knows_and_what_it_extrapolates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "PIPED_WIDTH", 200)
    costs, site = write_costs(tmp_path, ONE_NODE), write_site(tmp_path)
    command = ["plan", str(QUICKSTART), "--predict", "8", "--costs", str(costs)]
    assert main(command) == 1
    assert "tells nothing of the network between nodes: say --site FILE" in capsys.readouterr().err
    assert main([*command, "--site", str(site), "--ranks-per-node", "40"]) == 1
    assert "40 ranks a node are more than the 30 agents" in capsys.readouterr().err
    assert main([*command, "--site", str(site), "--ranks-per-node", "8", "--set", "train.order=consensus"]) == 0
    out = capsys.readouterr().out
    assert "ring (the job's)" in out
    assert "8 nodes: at 8 a node, more ranks than agents" in out
    assert "WARNING: costs were measured with train.order: adapt-then-combine" in out
    assert "WARNING: costs were measured with another job, job" in out
    assert f"network between nodes: {site}" in out
    assert main(["plan", str(QUICKSTART), "--predict", "1"]) == 1
    assert "--predict needs --costs FILE" in capsys.readouterr().err


def test_sizes_far_outside_are_marked() -> None:
    model = CostModel(
        constants={("local steps", "rounds"): 1.0, ("local steps", "work"): 0.0, ("mixing", "rounds"): 0.0,
                   ("mixing", "moved_bytes"): 0.0, ("exchange", "messages_within"): 0.0,
                   ("exchange", "bytes_within"): 0.0, ("exchange", "messages_between"): 0.0,
                   ("exchange", "bytes_between"): 0.0},
        ranges={"ranks": (1.0, 2.0)},
        network="fitted",
    )  # fmt: skip
    assert model.beyond(Demand({"ranks": 8.0}, 1.0)) == []
    costs = Costs(model, (), cores=8, threads=1, job="quickstart", order="adapt-then-combine", source=Path("x"))
    job = load_job(QUICKSTART).job
    plan = make_plan(load_job(QUICKSTART), load_dataset(job.data, 0), 1)
    found, *_ = outlooks({"ring": plan}, "ring", costs, nodes=16, ranks_per_node=1)
    assert {p.nodes: p.beyond for p in found.predictions} == {1: (), 2: (), 4: (), 8: (), 16: ("ranks",)}
