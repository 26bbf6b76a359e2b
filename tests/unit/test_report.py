"""The report: what the pictures show is what the metrics hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import ParseMpiError, StorageError
from parse_mpi.job import Job
from parse_mpi.jobfile import dump_job, load_job
from parse_mpi.plan import Plan, make_plan
from parse_mpi.storage.layout import Array
from parse_mpi.storage.metrics import consolidate, write_segment, write_table
from parse_mpi.studies.costs import budget_figure, link_bytes, mean_seconds, time_figure
from parse_mpi.studies.curves import accuracy_figure, consensus_figure, losses_figure
from parse_mpi.studies.graphview import MOST_EDGES, circle, drawn_eras, graphs_figure, matching, sampled
from parse_mpi.studies.recorded import RecordedRun
from parse_mpi.studies.report import draw_report
from parse_mpi.studies.series import Spread, running_mean
from parse_mpi.studies.tallies import classes_figure
from parse_mpi.topology.slice_graph import slice_graph

KINDS = (("top", 3), ("top+bottom", 4), ("bottom", 3), ("top+bottom", 2))
PHASES = ["local_steps", "wait", "evaluate"]
PREDICTIONS = ["ensemble", "unique", "redundant", "synergistic"]
RING = {"kind": "ring"}
GOSSIP = {"kind": "random-gossip", "base": "ring"}
PIECES = {"kind": "erdos-renyi", "probability": 0.1, "scope": "induced", "allow_disconnected": True}


# Agents 0-2 hold top, 3-6 and 10-11 both, 7-9 bottom.
EVENTS = (
    {"kind": "join", "round": 5, "agents": [9]},
    {"kind": "lose", "round": 10, "agents": [3, 4], "modality": "top"},
    {"kind": "cut", "round": 10, "modality": "top"},
    {"kind": "cut", "round": 10, "links": [[0, 1]]},
    {"kind": "leave", "round": 25, "agents": [0, 1, 2]},
    {"kind": "gain", "round": 50, "agents": [7], "modality": "top"},
)


def make_job(
    topology: dict[str, object],
    method: str = "parse",
    kinds: tuple[tuple[str, int], ...] = KINDS,
    events: tuple[dict[str, object], ...] = (),
) -> Job:
    return Job.model_validate(
        {
            "name": "synthetic",
            "agents": [{"modalities": kind.split("+"), "count": count} for kind, count in kinds],
            "topology": topology,
            "method": {"name": method},
            "events": events,
            "train": {"rounds": 60},
        }
    )


class Bench:
    """A run directory whose metrics are made up, except for the plan's tables."""

    def __init__(self, path: Path, job: Job):
        path.mkdir(parents=True, exist_ok=True)
        (path / "job.yaml").write_text(dump_job(job))
        self.path = path
        jobfile = load_job(path / "job.yaml")
        self.plan: Plan = make_plan(jobfile, load_dataset(job.data, job.seed), ranks=2)
        self.kinds = np.array([agent.kind for agent in self.plan.agents])
        self.generator = np.random.default_rng(0)
        self.components = [
            spec.name
            for spec in self.plan.slices
            for part in (self.plan.graphs[spec.graph].components() if spec.graph else [spec.holders])
            if len(part) > 1
        ]
        self.slices = [spec.name for spec in self.plan.slices]
        self.rounds = 0
        self.histogram = self.generator.integers(0, 9, (len(self.kinds), 4))
        self._write_tables()

    def add(self, rounds: int, ranks: int = 2, evaluated: bool = True) -> dict[str, Array]:
        """One more segment, evaluated at its last round; returns what it holds."""
        draw, agents = self.generator, len(self.kinds)
        first, self.rounds = self.rounds + 1, self.rounds + rounds
        index = np.arange(first, self.rounds + 1)
        loss = draw.random((rounds, agents, 4)) + 0.1
        loss[:, ["+" not in kind for kind in self.kinds], 3] = 0.0
        made: dict[str, Array] = {
            "rounds/round": index,
            "rounds/loss": loss,
            "ranks/round": index,
            "ranks/seconds": draw.random((rounds, ranks, len(PHASES))),
            "ranks/travel_seconds": draw.random((rounds, ranks)),
            "rounds/payload_bytes": draw.integers(1, 10**6, (rounds, len(self.slices))),
            "rounds/waiting_bytes": np.zeros((rounds, len(self.slices)), np.int64),
            "links/source": np.arange(ranks),
            "links/destination": (np.arange(ranks) + 1) % ranks,
            "links/bytes": draw.integers(1, 10**6, ranks),
        }
        if evaluated:
            accuracy = draw.random((1, agents, 2, 2, len(PREDICTIONS)))
            accuracy[:, ["+" not in kind for kind in self.kinds], :, :, 3] = np.nan
            made["evaluations/round"] = index[-1:]
            made["evaluations/accuracy"] = accuracy
            made["evaluations/consensus_distance"] = draw.random((1, len(self.components)))
        write_segment(self.path, first, self.rounds, made, self._attributes(evaluated))
        return made

    def read(self) -> RecordedRun:
        return RecordedRun.read(self.path)

    def _write_tables(self) -> None:
        tables = {
            "agents/kind": self.kinds,
            "agents/class_histogram": self.histogram,
            "slices/name": np.array(self.slices),
            "slices/graph": np.array([spec.graph for spec in self.plan.slices]),
            "eras/start": np.array([era.start for era in self.plan.eras]),
        }
        labels = {"modalities": list(self.plan.shapes), "class_names": ["a", "b", "c", "d"]}
        write_table(self.path, "plan", tables, {"agents": labels})

    def _attributes(self, evaluated: bool) -> dict[str, dict[str, list[str]]]:
        attributes = {
            "rounds/loss": {"term": ["total", "ensemble", "heads", "contrastive"]},
            "ranks/seconds": {"phase": PHASES},
            "rounds/waiting_bytes": {"slice": self.slices},
        }
        if evaluated:
            attributes["evaluations/accuracy"] = {
                "split": ["validation", "test"],
                "weighting": ["global", "local"],
                "prediction": PREDICTIONS,
            }
            attributes["evaluations/consensus_distance"] = {"component": self.components}
        return attributes


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", make_job(RING))


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.canvas.draw()
    return figure


def panel(figure: Figure, title: str) -> Axes:
    """The one panel whose title begins so."""
    (found,) = [axes for axes in figure.axes if (axes.get_title() or axes.get_title("left")).startswith(title)]
    return found


def line(axes: Axes, label: str) -> NDArray[np.float64]:
    """The points [n, 2] of the one line of that name."""
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())


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


# -- curves ----------------------------------------------------------------------------------------------------------


def test_accuracy_lines_and_bands_are_the_metrics(bench: Bench) -> None:
    segments = [bench.add(20) for _ in range(3)]
    figure = drawn(accuracy_figure(bench.read()))
    for title, prediction in (("Ensemble", 0), ("Unique heads", 1), ("Redundant heads", 2), ("Synergistic heads", 3)):
        axes = panel(figure, title)
        test_global = np.concatenate([s["evaluations/accuracy"] for s in segments])[:, :, 1, 0, prediction]
        for kind in ("top", "bottom", "top+bottom"):
            xy = line(axes, kind)
            np.testing.assert_array_equal(xy[:, 0], [20, 40, 60])
            np.testing.assert_allclose(xy[:, 1], test_global[:, bench.kinds == kind].mean(1))  # nan equals nan
            assert np.isnan(xy[:, 1]).all() == (prediction == 3 and "+" not in kind)
    band = panel(figure, "Ensemble").collections[0].get_paths()[0].vertices
    last = segments[-1]["evaluations/accuracy"][0, bench.kinds == "top", 1, 0, 0]
    np.testing.assert_allclose(sorted({*band[band[:, 0] == 60, 1]}), [last.min(), last.max()])


def test_whiskers_stand_in_for_the_bands_of_many_kinds(tmp_path: Path) -> None:
    kinds = [("top", 1), ("bottom", 1), ("top+bottom", 1)]
    bench = Bench(tmp_path / "run", make_job(RING, kinds=tuple(kinds * 3)))
    made = bench.add(1)
    axes = panel(drawn(accuracy_figure(bench.read())), "Ensemble")
    ends = [tuple(artist.get_ydata()) for artist in axes.lines if len(artist.get_ydata()) == 2]
    test_global = made["evaluations/accuracy"][0, :, 1, 0, 0]
    of_kind = [test_global[bench.kinds == kind] for kind, _ in kinds]
    np.testing.assert_allclose(ends, [(values.min(), values.max()) for values in of_kind])


def test_loss_lines_are_means_and_absent_terms_have_none(bench: Bench) -> None:
    loss = np.concatenate([bench.add(7)["rounds/loss"], bench.add(8)["rounds/loss"]])
    figure = drawn(losses_figure(bench.read()))
    for title, term in (("Total", 0), ("Cross-entropy of the ensemble", 1), ("Cross-entropy of the heads", 2)):
        for kind in ("top", "bottom", "top+bottom"):
            xy = line(panel(figure, title), kind)
            np.testing.assert_array_equal(xy[:, 0], np.arange(1, 16))
            np.testing.assert_allclose(xy[:, 1], loss[:, bench.kinds == kind, term].mean(1))
    assert [line.get_label() for line in panel(figure, "Contrastive").lines] == ["top+bottom"]


def test_long_runs_are_smoothed_and_say_so(bench: Bench) -> None:
    loss = bench.add(240)["rounds/loss"]
    figure = drawn(losses_figure(bench.read()))
    assert "running mean over 13 rounds" in str(figure.get_suptitle())
    mean = loss[:, bench.kinds == "top", 0].mean(1)
    np.testing.assert_allclose(line(panel(figure, "Total"), "top")[100, 1], mean[94:107].mean())
    assert any(np.array_equal(thin.get_ydata(), mean) for thin in panel(figure, "Total").lines)


@given(
    values=arrays(np.float64, st.integers(1, 30), elements=st.floats(-100, 100) | st.just(np.nan)),
    half=st.integers(0, 6),
)
def test_running_mean_is_the_mean_of_what_is_there(values: NDArray[np.float64], half: int) -> None:
    smooth = running_mean(values, 2 * half + 1)
    for k, value in enumerate(values):
        around = values[max(0, k - half) : k + half + 1]
        expected = np.nan if np.isnan(value) else np.nanmean(around)
        np.testing.assert_allclose(smooth[k], expected, atol=1e-9)


@given(arrays(np.float64, (4, 5), elements=st.floats(-100, 100) | st.sampled_from([np.nan, np.inf])))
def test_spread_leaves_out_what_is_not_finite(values: NDArray[np.float64]) -> None:
    for row, mean, low, high in zip(values, *Spread.of(values), strict=True):
        known = row[np.isfinite(row)]
        expected = (known.mean(), known.min(), known.max()) if len(known) else (np.nan,) * 3
        np.testing.assert_allclose((mean, low, high), expected, atol=1e-12)


def test_consensus_lines_are_means_over_the_pieces_of_a_graph(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", make_job(PIECES))
    segments = [bench.add(20) for _ in range(2)]
    distance = np.concatenate([s["evaluations/consensus_distance"] for s in segments])
    names = np.array(bench.components)
    assert len(set(names)) < len(names)  # some graph has several components of two or more
    figure = drawn(consensus_figure(bench.read()))
    seen = []
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        for curve in axes.lines:
            seen.append(str(curve.get_label()))
            np.testing.assert_allclose(curve.get_ydata(), distance[:, names == seen[-1]].mean(1))
    assert sorted(seen) == sorted(set(names))


def test_full_consensus_has_no_place_on_a_log_axis(bench: Bench) -> None:
    bench.add(20)
    run = bench.read()
    run.metrics.arrays["evaluations/consensus_distance"][:] = 0.0
    for curve in (curve for axes in drawn(consensus_figure(run)).axes for curve in axes.lines):
        assert np.isnan(np.asarray(curve.get_ydata())).all()


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


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def eventful(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", make_job(GOSSIP, events=EVENTS))


def kind_in(bench: Bench, done: int) -> NDArray[np.str_]:
    return np.array([agent.kind for agent in bench.plan.at(done - 1).agents])


def test_lines_follow_the_kinds_of_their_rounds_and_leave_out_who_is_away(eventful: Bench) -> None:
    """Round 5 is the last before agent 9 joins, 10 the last before two agents change their kind."""
    segments = [eventful.add(5) for _ in range(6)]
    run = eventful.read()
    assert [era.start for era in run.eras] == [0, 5, 10, 25]  # round 50 is not reached
    accuracy = np.concatenate([s["evaluations/accuracy"] for s in segments])[:, :, 1, 0, 0]
    loss = np.concatenate([s["rounds/loss"] for s in segments])[:, :, 0]
    curves, losses = panel(drawn(accuracy_figure(run)), "Ensemble"), panel(drawn(losses_figure(run)), "Total")
    for kind in ("top", "bottom", "top+bottom"):
        means = [
            [
                row[kind_in(eventful, done) == kind].mean() if kind in kind_in(eventful, done) else np.nan
                for done, row in rows
            ]
            for rows in (zip(range(5, 31, 5), accuracy, strict=True), zip(range(1, 31), loss, strict=True))
        ]
        np.testing.assert_allclose(line(curves, kind)[:, 1], means[0])
        np.testing.assert_allclose(line(losses, kind)[:, 1], means[1])
    assert np.isnan(line(curves, "top")[-1, 1])
    assert {count.get_text() for count in curves.figure.legends[0].get_texts()} == {
        "top (0 to 3 agents)",
        "bottom (2 to 5 agents)",
        "top+bottom (4 to 6 agents)",
    }


def test_events_are_marked_between_their_rounds(eventful: Bench) -> None:
    for _ in range(6):
        eventful.add(5)
    figure = drawn(accuracy_figure(eventful.read()))
    for axes in figure.axes:
        marks = [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")]
        assert marks == [5.5, 10.5, 25.5]
    texts = [text.get_text() for text in panel(figure, "Ensemble").texts]
    assert texts == ["join", "lose top\ncut the graphs of top\n…", "leave"]


def test_every_era_has_its_row_of_graphs(eventful: Bench) -> None:
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


def test_agents_without_events_are_the_same_in_all_rounds(bench: Bench) -> None:
    bench.add(20)
    members = bench.read().members(np.array([1, 7, 20]))
    for kind, here in members.items():
        np.testing.assert_array_equal(here, np.tile(bench.kinds == kind, (3, 1)))
