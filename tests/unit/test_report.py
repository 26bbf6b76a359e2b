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
from parse_mpi.studies.curves import Spread, accuracy_figure, consensus_figure, losses_figure, running_mean
from parse_mpi.studies.graphview import MOST_EDGES, circle, graphs_figure, matching, sampled
from parse_mpi.studies.recorded import RecordedRun
from parse_mpi.studies.report import draw_report
from parse_mpi.studies.tallies import classes_figure, link_bytes, mean_seconds, time_figure
from parse_mpi.topology.slice_graph import slice_graph

KINDS = (("top", 3), ("top+bottom", 4), ("bottom", 3), ("top+bottom", 2))
PHASES = ["local_steps", "wait", "evaluate"]
PREDICTIONS = ["ensemble", "unique", "redundant", "synergistic"]
RING = {"kind": "ring"}
GOSSIP = {"kind": "random-gossip", "base": "ring"}
PIECES = {"kind": "erdos-renyi", "probability": 0.1, "scope": "induced", "allow_disconnected": True}


def make_job(topology: dict[str, object], method: str = "parse", kinds: tuple[tuple[str, int], ...] = KINDS) -> Job:
    return Job.model_validate(
        {
            "name": "synthetic",
            "agents": [{"modalities": kind.split("+"), "count": count} for kind, count in kinds],
            "topology": topology,
            "method": {"name": method},
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
            "slices/name": np.array([spec.name for spec in self.plan.slices]),
            "slices/graph": np.array([spec.graph for spec in self.plan.slices]),
        }
        labels = {"modalities": list(self.plan.shapes), "class_names": ["a", "b", "c", "d"]}
        write_table(self.path, "plan", tables, {"agents": labels})

    def _attributes(self, evaluated: bool) -> dict[str, dict[str, list[str]]]:
        attributes = {
            "rounds/loss": {"term": ["total", "ensemble", "heads", "contrastive"]},
            "ranks/seconds": {"phase": PHASES},
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
    assert set(run.graphs) == set(bench.plan.graphs)
    for name, graph in bench.plan.graphs.items():
        assert run.graphs[name].groups == graph.groups
        np.testing.assert_array_equal(run.graphs[name].union_edges(), graph.union_edges())
        np.testing.assert_array_equal(run.graphs[name].at(3).dense(), graph.at(3).dense())
    np.testing.assert_array_equal(run.rank_of, bench.plan.rank_of)


@pytest.mark.parametrize("topology", [RING, GOSSIP, PIECES], ids=["ring", "gossip", "pieces"])
def test_panels_show_edges_agents_and_pieces(tmp_path: Path, topology: dict[str, object]) -> None:
    bench = Bench(tmp_path / "run", make_job(topology))
    bench.add(4)
    run = bench.read()
    figure = drawn(graphs_figure(run))
    for name, graph in run.graphs.items():
        axes, place = panel(figure, f"{name}\n"), dict(zip(graph.agents, circle(graph), strict=True))
        lines = [part for part in axes.collections if isinstance(part, LineCollection)]
        expected = [graph.union_edges()] + ([] if graph.static else [matching(run, graph)])
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
    pairs = matching(run, run.graphs["all agents"])
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
    assert {name: ids.tolist() for name, ids in merged.items()} == {
        "1 modality": [0, 1, 2, 7, 8, 9],
        "2 modalities": [3, 4, 5, 6, 10, 11],
    }
