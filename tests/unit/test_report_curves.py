"""Curves of the report: lines, bands and marks are what the metrics hold, also where events change who is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from report_cases import EVENTS, GOSSIP, PIECES, RING, Bench, drawn, line, make_job, panel

from parse_mpi.studies.curves import accuracy_figure, consensus_figure, losses_figure
from parse_mpi.studies.series import Spread, running_mean


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", make_job(RING))


@pytest.fixture
def eventful(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "run", make_job(GOSSIP, events=EVENTS))


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


def test_terms_that_a_method_never_has_get_no_panel_and_in_its_other_stages_no_line(bench: Bench) -> None:
    bench.add(4)
    run = bench.read()
    loss = run.metrics["rounds/loss"]
    loss[:2, :, 1] = loss[2:, :, 2] = loss[:, :, 3] = 0
    figure = drawn(losses_figure(run))
    assert [axes.get_title("left").split()[-1] for axes in figure.axes] == ["minimise", "ensemble", "heads"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "round", "round"]
    xy = line(panel(figure, "Cross-entropy of the ensemble"), "top")
    np.testing.assert_allclose(xy[:, 1], [np.nan, np.nan, *loss[2:, bench.kinds == "top", 1].mean(1)])


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


def test_a_line_of_one_point_is_seen(bench: Bench) -> None:
    """A slice that begins to learn late has one distance above 0."""
    for _ in range(2):
        bench.add(20)
    run = bench.read()
    run.metrics["evaluations/consensus_distance"][0] = 0
    assert {line.get_marker() for axes in drawn(consensus_figure(run)).axes for line in axes.lines} == {"o"}
    run.metrics["evaluations/accuracy"][0] = np.nan
    assert {line.get_marker() for line in panel(drawn(accuracy_figure(run)), "Ensemble").lines} == {"o"}


def test_full_consensus_has_no_place_on_a_log_axis(bench: Bench) -> None:
    bench.add(20)
    run = bench.read()
    run.metrics.arrays["evaluations/consensus_distance"][:] = 0.0
    for curve in (curve for axes in drawn(consensus_figure(run)).axes for curve in axes.lines):
        assert np.isnan(np.asarray(curve.get_ydata())).all()


# -- events -----------------------------------------------------------------------------------------------------------


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


def test_agents_without_events_are_the_same_in_all_rounds(bench: Bench) -> None:
    bench.add(20)
    members = bench.read().members(np.array([1, 7, 20]))
    for kind, here in members.items():
        np.testing.assert_array_equal(here, np.tile(bench.kinds == kind, (3, 1)))
