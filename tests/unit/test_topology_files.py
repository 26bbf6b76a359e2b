"""Topologies in a job: the shipped files, edge lists, and what is said where keys don't fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from parse_mpi.errors import JobError
from parse_mpi.job import GRAPH_KINDS, Topology
from parse_mpi.job.topology import parse_edges
from parse_mpi.jobfile import dump_job, job_digest, load_job
from parse_mpi.topology.slice_graph import slice_graph

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "topologies").glob("*.yaml"))
DIRECTED = ("one-peer-exponential", "static-exponential", "base-k")
TOP, BOTTOM, BOTH = (*range(10), *range(20, 30)), range(10, 30), range(20, 30)
JOB = "name: x\nagents: [{modalities: [top], count: 4}]\nmethod: {name: parse}\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_file_makes_graphs_of_thirty_agents(file: Path) -> None:
    job = load_job(ROOT / "jobs" / "quickstart.yaml", [f"topology={file.stem}"]).job
    for holders in (range(30), TOP, BOTTOM, BOTH):
        graph = slice_graph("slice", [holders], job.topology, job.seed, 30)
        assert job.topology.allow_disconnected or graph.spectral_gap() > 0
        assert 0 < graph.active_degree() <= 29 or file.stem == "star-induced"
        np.testing.assert_allclose(graph.at(0).dense().sum(axis=0), 1.0, rtol=0, atol=1e-14)
    lines = file.read_text("utf-8").splitlines()
    assert [line[0] for line in lines[:3]] == ["#", "#", "k"], "two lines say what it is and its cost"


def test_a_file_is_shipped_for_each_kind_and_scope() -> None:
    shipped = {(read["kind"], read["scope"]) for read in (yaml.safe_load(file.read_text("utf-8")) for file in FILES)}
    overlay_only = {"one-peer-exponential", "base-k"}
    expected = {(kind, "overlay") for kind in GRAPH_KINDS if kind != "edge-list"}
    assert shipped == expected | {(kind, "induced") for kind in GRAPH_KINDS if kind not in overlay_only}


def gap(count: int, **keys: object) -> float:
    return slice_graph("a", [range(count)], Topology.model_validate(keys), 0, count).spectral_gap()


@pytest.mark.parametrize(
    ("known", "digits", "keys"),
    [
        (0.0146, 4, {"kind": "ring"}),
        (0.0432, 4, {"kind": "chordal-ring"}),
        (0.2, 3, {"kind": "torus"}),
        (0.333, 3, {"kind": "static-exponential", "directed": True}),
        (0.364, 3, {"kind": "static-exponential", "directed": False}),
        (1 / 30, 12, {"kind": "star"}),
        (1.0, 12, {"kind": "complete"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_known_gaps_at_30_agents(known: float, digits: int, keys: dict[str, object]) -> None:
    assert round(gap(30, **keys), digits) == round(known, digits)


@pytest.mark.parametrize("count", [2, 4, 6, 10, 16, 30, 64, 100])
def test_the_directed_exponential_gap_has_a_closed_form_for_even_numbers(count: int) -> None:
    hops = int(np.ceil(np.log2(count)))
    assert gap(count, kind="static-exponential", directed=True) == pytest.approx(2 / (1 + hops))


@pytest.mark.parametrize("count", range(1, 34))
def test_one_peer_averages_exactly_only_for_powers_of_two(count: int) -> None:
    graph = slice_graph("a", [range(count)], Topology(kind="one-peer-exponential"), 0, count)
    product = np.eye(count)
    for round_index in range(graph.phases):
        product = graph.at(round_index).dense() @ product
    is_mean = bool(np.allclose(product, 1 / count, rtol=0, atol=1e-12))
    assert is_mean == (count & (count - 1) == 0)
    assert graph.exact_after() == (graph.phases if is_mean and count > 1 else None)


def test_rows_go_one_two_four_places_on() -> None:
    """Every member by its rank: agent 3 of 1, 3, 5, 7, 9 sends to 5, to 7, and round the corner to 1."""
    graph = slice_graph("a", [range(1, 10, 2)], Topology(kind="one-peer-exponential"), 0, 10)
    receivers = [
        [receiver for sender, receiver in graph.at(t).links().tolist() if sender == 3] for t in range(graph.phases)
    ]
    assert receivers == [[5], [7], [1]]
    static = slice_graph("a", [range(1, 10, 2)], Topology(kind="static-exponential", directed=True), 0, 10)
    assert [receiver for sender, receiver in static.links().tolist() if sender == 3] == [1, 5, 7]
    assert set(static.at(0).weights.tolist()) == {0.25}


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("{kind: ring, probability: 0.3}", "probability belongs to erdos-renyi and small-world"),
        ("{kind: ring, base: torus}", "base belongs to random-gossip and matcha"),
        ("{kind: erdos-renyi}", "erdos-renyi needs probability (0.3"),
        ("{kind: small-world, probability: 0.1}", "small-world needs degree"),
        ("{kind: small-world, probability: 0.1, degree: 3}", "3 is odd"),
        ("{kind: static-exponential}", "needs directed (true"),
        ("{kind: base-k}", "base-k needs k"),
        ("{kind: matcha}", "matcha needs budget"),
        ("{kind: matcha, budget: 0.5, base: static-exponential, directed: true}", "say directed: false"),
        ("{kind: one-peer-exponential, scope: induced}", "use scope: overlay"),
        ("{kind: static-exponential, directed: true, scope: induced}", "use scope: overlay"),
        ("{kind: base-k, k: 1, scope: induced}", "use scope: overlay"),
        ("{kind: edge-list, edges: [[0, 1]]}", "say scope: induced"),
        ("{kind: random-gossip, base: edge-list, edges: [[0, 1]]}", "say scope: induced"),
        ("{kind: edge-list, scope: induced}", "edge-list needs edges (or file"),
        ("{kind: edge-list, scope: induced, edges: [[0, 4]]}", "leads to agent 4, but the agents are 0 to 3"),
        ("{kind: edge-list, scope: induced, edges: [[2, 2]]}", "joins agent 2 to itself"),
        ("{kind: edge-list, scope: induced, edges: [[0, 1, 2]]}", "it must be a list of 2 entries"),
        ("{kind: edge-list, scope: induced, edges: [[0, 1]], file: e.txt}", "`file` and `edges`"),
        ("{kind: edge-list, scope: induced, file: 3}", "must be the path of an edge list"),
        ("{kind: edge-list, scope: induced, file: nowhere.txt}", "there is no file 'nowhere.txt'"),
        ("{kind: edge-list, scope: induced, file: bad.txt}", "line 2 says '1 x'"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(topology: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"{JOB}topology: {topology}\n")
    (tmp_path / "e.txt").write_text("0 1\n")
    (tmp_path / "bad.txt").write_text("0 1\n1 x\n")
    with pytest.raises(JobError) as caught:
        load_job(tmp_path / "job.yaml")
    (problem,) = caught.value.problems
    assert message in problem.what
    assert problem.where == f"{tmp_path / 'job.yaml'}:4"


def test_edge_lists_have_two_ids_a_line() -> None:
    assert parse_edges("# a comment\n0 1\n\n 2,1  # and one\n10\t3") == [(0, 1), (2, 1), (10, 3)]
    for text in ("0", "0 -1", "0 1.5", "0 1 2", "a b"):
        with pytest.raises(ValueError, match="line 1 says"):
            parse_edges(text)
    with pytest.raises(ValueError, match="no line names two agents"):
        parse_edges("# nothing\n")


def test_an_edge_list_becomes_part_of_the_job(tmp_path: Path) -> None:
    """Beside the topology's file or the job's; the order of lines does not count, their content does."""
    (tmp_path / "topologies").mkdir()
    (tmp_path / "topologies" / "mine.yaml").write_text("kind: edge-list\nscope: induced\nfile: mine.txt\n")
    (tmp_path / "topologies" / "mine.txt").write_text("2 1\n0 1\n1 2\n3 2\n")
    (tmp_path / "job.yaml").write_text(f"{JOB}topology: mine\n")
    job = load_job(tmp_path / "job.yaml").job
    assert job.topology.edges == ((0, 1), (1, 2), (2, 3))
    (tmp_path / "beside.txt").write_text("0 1\n1 2\n2 3\n")
    inline = "topology={kind: edge-list, scope: induced, file: beside.txt}"
    assert job_digest(load_job(tmp_path / "job.yaml", [inline]).job) == job_digest(job)
    (tmp_path / "resolved.yaml").write_text(dump_job(job))
    (tmp_path / "beside.txt").write_text("0 1\n1 2\n1 3\n")
    (tmp_path / "topologies" / "mine.txt").unlink()
    assert load_job(tmp_path / "resolved.yaml").job == job
    assert job_digest(load_job(tmp_path / "job.yaml", [inline]).job) != job_digest(job)
