"""The report: which pictures there are, and what graphs and totals show is what the plan and the metrics hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.image import imread
from report_cases import EVENTS, GOSSIP, PHASES, PIECES, RING, Bench, drawn, line, make_job, panel

from parse_mpi.errors import ParseMpiError, StorageError
from parse_mpi.storage.metrics import consolidate
from parse_mpi.studies.costs import budget_figure, link_bytes, mean_seconds, time_figure
from parse_mpi.studies.curves import accuracy_figure
from parse_mpi.studies.graphview import MOST_EDGES, circle, drawn_eras, graphs_figure, matching, sampled
from parse_mpi.studies.report import draw_report
from parse_mpi.studies.tallies import classes_figure
from parse_mpi.topology.slice_graph import slice_graph


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", make_job(RING))


# -- files -----------------------------------------------------------------------------------------------------------


def test_every_picture_of_a_whole_run_comes_into_being_without_torch(bench: Bench) -> None:
    for _ in range(3):
        bench.add(20)
    consolidate(bench.path)
    code = (
        "import sys; from pathlib import Path; from parse_mpi.studies.report import draw_report\n"
        "for path in draw_report(Path(sys.argv[1])): print(path.name)\n"
        "print({'torch', 'mpi4py', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(bench.path)]
    *names, heavy = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert names == ["accuracy.png", "losses.png", "consensus.png", "graphs.png", "classes.png", "time.png"]
    assert heavy == "set()"
    assert sorted(path.name for path in (bench.path / "report").iterdir()) == sorted(names)
    for name in names:
        picture = imread(bench.path / "report" / name)
        height, width = picture.shape[:2]
        assert 400 < height < 3000
        assert 900 < width < 3000
        assert 0.01 < (picture[..., :3].min(axis=2) < 0.9).mean() < 0.8  # neither empty nor a blob


def test_before_the_first_round_there_are_graphs_and_classes(bench: Bench) -> None:
    assert [path.name for path in draw_report(bench.path)] == ["graphs.png", "classes.png"]


def test_before_the_first_evaluation_there_is_no_accuracy(bench: Bench) -> None:
    bench.add(3, evaluated=False)
    assert [path.name for path in draw_report(bench.path)] == ["losses.png", "graphs.png", "classes.png", "time.png"]


def test_metrics_without_their_tables_are_an_error(bench: Bench) -> None:
    bench.add(2)
    (bench.path / "metrics" / "table-plan.h5").unlink()
    with pytest.raises(StorageError, match="the metrics hold no modalities of agents"):
        draw_report(bench.path)


def test_a_report_can_be_made_again(bench: Bench) -> None:
    first = draw_report(bench.path)
    bench.add(2)
    assert set(first) < set(draw_report(bench.path))


def test_a_single_evaluation_and_agents_without_exchange(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", make_job(RING, "local"))
    bench.add(1)
    assert "graphs.png" not in {path.name for path in draw_report(bench.path)}
    assert graphs_figure(bench.read()) is None
    axes = panel(drawn(accuracy_figure(bench.read())), "Ensemble")
    assert "bars: worst to best" in axes.get_title("left")


def test_the_title_names_exact_means_and_not_the_topology_that_they_ignore(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", make_job(RING, method="centralised"))
    bench.add(1)
    assert bench.read().title() == "synthetic: centralised, exact means, 12 agents, round 1 of 60"


def test_an_hdf5_file_that_is_gone_does_not_matter(bench: Bench) -> None:
    bench.add(2)
    text = (bench.path / "job.yaml").read_text()
    assert "source: digits" in text
    (bench.path / "job.yaml").write_text(text.replace("source: digits", "source: {hdf5: /gone/data.h5}"))
    assert len(draw_report(bench.path)) == 6


def test_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run has started here"):
        draw_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_without_matplotlib_it_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("parse_mpi.studies."):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ParseMpiError, match=r"pip install 'parse-mpi\[report\]'"):
        draw_report(bench.path)


# -- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", [RING, GOSSIP, PIECES], ids=["ring", "gossip", "pieces"])
def test_recorded_graphs_and_ranks_are_the_plans(tmp_path: Path, topology: dict[str, object]) -> None:
    bench = Bench(tmp_path / "run", make_job(topology))
    bench.add(4)
    run = bench.read()
    (graphs,) = run.graphs
    assert set(graphs) == set(bench.plan.graphs)
    for name, graph in bench.plan.graphs.items():
        assert graphs[name].groups == graph.groups
        np.testing.assert_array_equal(graphs[name].union_edges(), graph.union_edges())
        np.testing.assert_array_equal(graphs[name].at(3).dense(), graph.at(3).dense())
    np.testing.assert_array_equal(run.rank_of, bench.plan.rank_of)


@pytest.mark.parametrize("topology", [RING, GOSSIP, PIECES], ids=["ring", "gossip", "pieces"])
def test_panels_show_edges_agents_and_pieces(tmp_path: Path, topology: dict[str, object]) -> None:
    bench = Bench(tmp_path / "run", make_job(topology))
    bench.add(4)
    run = bench.read()
    figure = drawn(graphs_figure(run))
    for name, graph in run.graphs[0].items():
        axes, place = panel(figure, f"{name}\n"), dict(zip(graph.agents, circle(graph), strict=True))
        lines = [part for part in axes.collections if isinstance(part, LineCollection)]
        expected = [graph.union_edges()] + ([] if graph.static else [matching(run, 0, graph)])
        assert len(lines) == len(expected)
        for shown, edges in zip(lines, expected, strict=True):
            ends = [[place[i], place[j]] for i, j in edges.tolist()]
            np.testing.assert_allclose(np.array(shown.get_segments()).reshape(-1, 2, 2), np.reshape(ends, (-1, 2, 2)))
        dots = [part for part in axes.collections if isinstance(part, PathCollection)]
        assert sum(len(part.get_offsets()) for part in dots) == len(graph.agents)
        hollow = sum(len(part.get_offsets()) for part in dots if (part.get_facecolor()[:, :3] == 1).all())
        assert hollow == len(graph.agents) - len(graph.components()[0])
        assert {text.get_text() for text in axes.texts} == set(map(str, graph.agents))


def test_a_matching_is_that_of_the_last_recorded_round(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", make_job(GOSSIP))
    bench.add(4)
    run = bench.read()
    dense = bench.plan.graphs["all agents"].at(3).dense()
    pairs = matching(run, 0, run.graphs[0]["all agents"])
    assert {(i, j) for i, j in zip(*np.nonzero(np.triu(dense, 1)), strict=True)} == set(map(tuple, pairs.tolist()))


def test_agents_stand_on_a_circle_in_the_order_of_their_ids() -> None:
    spec = make_job(RING).topology
    place = circle(slice_graph("x", [[0, 2, 5], [1, 3]], spec, 0, 6))
    np.testing.assert_allclose(np.linalg.norm(place, axis=1), 1)
    clockwise = np.arctan2(place[:, 0], place[:, 1]) % (2 * np.pi)
    np.testing.assert_allclose(clockwise / (2 * np.pi) * 7, [0, 4, 1, 5, 2])  # 0 2 5 gap 1 3 gap, by agent 0 1 2 3 5


def test_a_complete_graph_of_many_is_sampled() -> None:
    edges = slice_graph("x", [range(300)], make_job({"kind": "complete"}).topology, 0, 300).union_edges()
    some = sampled(edges)
    assert len(some) == MOST_EDGES
    assert len(set(map(tuple, some.tolist())) & set(map(tuple, edges.tolist()))) == MOST_EDGES
    np.testing.assert_array_equal(some, sampled(edges))
    np.testing.assert_array_equal(sampled(edges[:MOST_EDGES]), edges[:MOST_EDGES])


def test_every_era_has_its_row_of_graphs(tmp_path: Path) -> None:
    eventful = Bench(tmp_path / "run", make_job(GOSSIP, events=EVENTS))
    for _ in range(6):
        eventful.add(5)
    run = eventful.read()
    assert drawn_eras(run) == [0, 1, 2, 3]
    figure = drawn(graphs_figure(run))
    names = ["top", "bottom", "multimodal agents", "all agents"]
    titles = [axes.get_title() for axes in figure.axes]
    expected = [(era, name) for era in run.eras for name in names]
    for (era, name), title in zip(expected, titles, strict=True):
        graph = eventful.plan.at(era.start).graphs.get(name)
        assert title.startswith(f"{name}\n{len(graph.agents)} agents" if graph else ""), (era.start, name)
        assert bool(title) == (graph is not None)
    beside = [axes.texts[-1].get_text() for axes in figure.axes[::4]]
    assert beside[0] == "rounds 1 to 5"
    assert beside[1] == "rounds 6 to 10\njoin: agent 9"
    assert beside[3] == "rounds 26 to 30\nleave: agents 0, 1, 2"
    graph = run.graphs[1]["all agents"]
    met = {(i, j) for i, j in zip(*np.nonzero(np.triu(graph.at(9).dense(), 1)), strict=True)}
    ids = dict(enumerate(graph.agents))
    assert {(ids[i], ids[j]) for i, j in met} == set(map(tuple, matching(run, 1, graph).tolist()))


def test_of_many_eras_some_are_drawn_and_the_newest_always(tmp_path: Path) -> None:
    flicker = tuple({"kind": ("heal", "cut")[k % 2], "round": k, "modality": "top"} for k in range(1, 12))
    bench = Bench(tmp_path / "run", make_job(RING, events=flicker))
    bench.add(3)
    assert drawn_eras(bench.read()) == [0, 1, 2]
    bench.add(20)
    run = bench.read()
    shown = drawn_eras(run)
    assert (len(shown), shown[0], shown[-1]) == (4, 0, 11)
    assert "4 of 12 eras" in str(drawn(graphs_figure(run)).get_suptitle())


# -- totals ----------------------------------------------------------------------------------------------------------


def test_heat_map_holds_the_histogram_grouped_by_kind(bench: Bench) -> None:
    figure = drawn(classes_figure(bench.read()))
    heat, totals = figure.axes[:2]
    order = [*range(3), *range(3, 7), 10, 11, *range(7, 10)]  # the second lot of top+bottom joins the first
    shown = np.ma.filled(heat.images[0].get_array(), 0)
    np.testing.assert_array_equal(shown, bench.histogram[order])
    assert [bar.get_width() for bar in totals.patches] == bench.histogram[order].sum(1).tolist()
    assert [label.get_text() for label in heat.get_yticklabels()] == ["top\n(3)", "top+bottom\n(6)", "bottom\n(3)"]


def test_time_and_bytes_of_a_run_that_came_back_on_fewer_ranks(bench: Bench) -> None:
    first, second = bench.add(4, ranks=3), bench.add(6, ranks=2)
    run = bench.read()
    assert run.ranks == 2
    both = np.concatenate([first["ranks/seconds"][:, :2], second["ranks/seconds"]]).mean(0)
    expected = np.stack([*both, first["ranks/seconds"][:, 2].mean(0)])
    np.testing.assert_allclose(mean_seconds(run), expected)
    total = link_bytes(run)
    assert total[0, 1] == first["links/bytes"][0] + second["links/bytes"][0]
    assert total[2, 0] == first["links/bytes"][2]
    assert total.sum() == first["links/bytes"].sum() + second["links/bytes"].sum()
    figure = drawn(time_figure(run))
    heights = np.reshape([bar.get_height() for bar in figure.axes[0].patches], (len(PHASES), 3)).T
    np.testing.assert_allclose(heights, expected)
    travel = np.concatenate([first["ranks/travel_seconds"][:, :2], second["ranks/travel_seconds"]]).mean(0)
    under_way = line(figure.axes[0], "rows under way")[:, 1]
    np.testing.assert_allclose(under_way, [*travel, first["ranks/travel_seconds"][:, 2].mean()])
    np.testing.assert_array_equal(np.ma.filled(figure.axes[1].images[0].get_array(), 0), total)


def test_one_rank_sends_nothing(bench: Bench) -> None:
    bench.add(4, ranks=1)
    run = bench.read()
    for name in ("source", "destination", "bytes"):
        run.metrics.arrays[f"links/{name}"] = np.empty(0, np.int64)
    assert len(drawn(time_figure(run)).axes) == 1


def test_too_many_kinds_are_counted_by_modalities(bench: Bench) -> None:
    run = bench.read()
    assert list(run.kinds()) == ["top", "top+bottom", "bottom"]
    merged = run.kinds(most=2)
    assert {name: np.flatnonzero(members[0]).tolist() for name, members in merged.items()} == {
        "1 modality": [0, 1, 2, 7, 8, 9],
        "2 modalities": [3, 4, 5, 6, 10, 11],
    }


def test_what_waited_for_a_budget_is_drawn_by_slice_and_round(bench: Bench) -> None:
    made = bench.add(4)
    run = bench.read()
    assert budget_figure(run) is None
    waiting = run.metrics.arrays["rounds/waiting_bytes"] = made["rounds/payload_bytes"] * np.arange(4)[:, None]
    bars, share = drawn(budget_figure(run)).axes
    widths = np.reshape([bar.get_width() for bar in bars.patches], (2, -1))
    np.testing.assert_allclose(widths, [made["rounds/payload_bytes"].mean(0), waiting.mean(0)])
    assert [label.get_text() for label in bars.get_yticklabels()] == bench.slices
    np.testing.assert_allclose(share.lines[0].get_ydata(), [100, 50, 100 / 3, 25])
