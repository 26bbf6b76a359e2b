"""`parse-mpi export --csv`: every number of the metrics in its row, on running and on finished runs."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pandas
import pytest
from report_cases import EVENTS, RING, Bench, make_job
from small_jobs import finished_run, write_job

from parse_mpi.cli import main
from parse_mpi.storage.layout import Array
from parse_mpi.storage.metrics import Metrics, consolidate, read_metrics
from parse_mpi.studies.export import _tidy

Rows = list[dict[str, str]]


def export(run: Path, *arguments: str) -> dict[str, Rows]:
    """The rows of every file that the command writes, by table."""
    assert main(["export", str(run), "--csv", *arguments]) == 0
    folder = Path(arguments[1]) if arguments else run / "csv"
    return {path.stem: read(path) for path in folder.iterdir()}


def read(path: Path) -> Rows:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def column(rows: Rows, name: str) -> list[str]:
    return [row[name] for row in rows]


def floats(rows: Rows, name: str) -> Array:
    return np.array([float(row[name] or "nan") for row in rows])


def ints(rows: Rows, name: str) -> Array:
    return np.array([int(row[name] or -1) for row in rows])


def require_tidy(rows: Rows, axes: dict[str, list[str]], **values: Array) -> None:
    """One row for each entry of arrays [axes], in C order, with its place on every axis."""
    shape = tuple(map(len, axes.values()))
    assert len(rows) == np.prod(shape)
    for k, (name, labels) in enumerate(axes.items()):
        places = np.broadcast_to(np.array(labels).reshape(-1, *[1] * (len(shape) - k - 1)), shape)
        assert column(rows, name) == places.ravel().tolist()
    for name, array in values.items():
        read = floats(rows, name) if array.dtype.kind == "f" else ints(rows, name)
        np.testing.assert_array_equal(read.reshape(shape), array)


def texts(values: Array | range) -> list[str]:
    return [str(value) for value in values]


def require_everything(tables: dict[str, Rows], metrics: Metrics, agents: int) -> None:
    """What the metrics of rounds and evaluations hold, to the last bit."""
    labels, ids = metrics.attributes, texts(range(agents))
    rounds, evaluated = texts(metrics["rounds/round"]), texts(metrics["evaluations/round"])
    axes = {"round": rounds, "agent": ids, "term": list(labels["rounds/loss"]["term"])}
    require_tidy(tables["rounds"], axes, loss=metrics["rounds/loss"])
    of_accuracy = {key: list(labels["evaluations/accuracy"][key]) for key in ("split", "weighting", "prediction")}
    axes = {"round": evaluated, "agent": ids, **of_accuracy}
    require_tidy(tables["evaluations"], axes, accuracy=metrics["evaluations/accuracy"])
    axes = {"round": evaluated, "slice": list(labels["evaluations/consensus_distance"]["component"])}
    distance = metrics["evaluations/consensus_distance"]
    require_tidy(tables["consensus"], axes, consensus_distance=distance)
    axes = {"round": rounds, "slice": list(labels["rounds/waiting_bytes"]["slice"])}
    sizes = {key: metrics[f"rounds/{key}"] for key in ("payload_bytes", "waiting_bytes")}
    require_tidy(tables["bytes"], axes, **sizes)
    seconds = metrics["ranks/seconds"]
    axes = {"round": rounds, "rank": texts(range(seconds.shape[1]))}
    by_phase = {f"{phase}_seconds": seconds[:, :, k] for k, phase in enumerate(labels["ranks/seconds"]["phase"])}
    require_tidy(tables["ranks"], axes, travel_seconds=metrics["ranks/travel_seconds"], **by_phase)


def test_a_real_run_from_first_round_to_last_look(tmp_path: Path) -> None:
    events = [
        {"kind": "lose", "round": 2, "agents": [6], "modality": "top"},
        {"kind": "leave", "round": 3, "agents": [0]},
        {"kind": "cut", "round": 1, "modality": "bottom"},
    ]
    changes = {"events": events, "train": {"rounds": 4}, "evaluate": {"every": 1}}
    run = finished_run(write_job(tmp_path, changes), tmp_path / "run")
    metrics, tables = read_metrics(run), export(run, "--out", str(tmp_path / "new" / "tables"))
    require_everything(tables, metrics, agents=10)

    kinds = metrics["eras/kind"][[0, 1, 2, 3]]  # in rounds 1 to 4: an event after each but the last
    shown = np.array(column(tables["evaluations"], "kind")).reshape(4, 10, -1)
    assert (shown == kinds[:, :, None]).all()
    assert {kinds[1, 6], kinds[2, 6], kinds[2, 0], kinds[3, 0]} == {"top+bottom", "bottom", "top", ""}
    assert (ints(tables["agents"], "agent") == np.arange(10)).all()
    assert column(tables["agents"], "kind") == metrics["agents/kind"].tolist()
    assert (ints(tables["agents"], "samples") == metrics["agents/class_histogram"].sum(1)).all()
    sent = metrics["ranks/sent_bytes"].sum(2)
    np.testing.assert_array_equal(ints(tables["ranks"], "sent_bytes").reshape(sent.shape), sent)
    assert tables["links"] == []  # one rank

    final = tables["final"]
    measured = {key: metrics[f"final/{key}"] for key in ("macro_f1", "calibration_error")}
    require_tidy(final, {"agent": texts(range(10)), "split": ["validation", "test"]}, **measured)
    (done,) = {*column(final, "round"), *column(tables["retrieval"], "round")}
    assert int(done) == metrics["rounds/round"][-1]
    assert (ints(final, "gradient_steps").reshape(10, 2) == metrics["final/gradient_steps"][:, None]).all()
    assert column(final, "kind")[::2] == kinds[3].tolist()
    assert final[0]["macro_f1"] == ""  # of an agent that is away
    retrieval, labels = tables["retrieval"], metrics.attributes["final/retrieval"]
    for k, measure in enumerate(labels["measure"]):
        np.testing.assert_array_equal(floats(retrieval, measure), metrics["final/retrieval"][:, k])
    assert ints(retrieval, "query_agent").tolist() == np.asarray(labels["query_agent"]).tolist()
    assert column(retrieval, "gallery_modality") == list(labels["gallery_modality"])


def test_pandas_reads_every_table(tmp_path: Path) -> None:
    """Numbers as numbers, empty cells as missing, and means by group as from the metrics."""
    run = finished_run(
        write_job(tmp_path, {"events": [{"kind": "leave", "round": 1, "agents": [0]}]}), tmp_path / "run"
    )
    metrics, tables = read_metrics(run), export(run)
    frames = {name: pandas.read_csv(run / "csv" / f"{name}.csv") for name in tables}
    for name, rows in tables.items():
        assert len(frames[name]) == len(rows)
        assert not rows or list(frames[name].columns) == list(rows[0])
    evaluations = frames["evaluations"]
    assert evaluations["accuracy"].dtype == np.float64
    assert evaluations["accuracy"].isna().any()
    ensemble = evaluations.query("prediction == 'ensemble' and split == 'test' and weighting == 'global'")
    labels = metrics.attributes["evaluations/accuracy"]
    wanted = {"split": "test", "weighting": "global", "prediction": "ensemble"}
    place = tuple(list(labels[axis]).index(level) for axis, level in wanted.items())
    expected = metrics["evaluations/accuracy"][(slice(None), slice(None), *place)]
    np.testing.assert_allclose(ensemble.groupby("round")["accuracy"].mean(), np.nanmean(expected, axis=1))


def test_a_run_under_way_on_changing_ranks(tmp_path: Path) -> None:
    """Cells of ranks that were not there are empty; every component of a slice is told apart."""
    bench = Bench(tmp_path / "run", make_job(RING, events=EVENTS))
    bench.components = ["head", "encoder[top]", "head"]
    for ranks in (3, 2):
        bench.add(4, ranks)
    assert not (bench.path / "metrics.h5").exists()
    metrics = read_metrics(bench.path)
    tables = export(bench.path)
    require_everything(tables, metrics, agents=12)
    third = [row for row in tables["ranks"] if row["rank"] == "2"]
    assert [row["sent_bytes"] != "" for row in third] == [row["wait_seconds"] != "" for row in third]
    assert [row["wait_seconds"] != "" for row in third] == [True] * 4 + [False] * 4
    assert column(tables["consensus"], "component")[:3] == ["0", "0", "1"]
    assert [int(row["bytes"]) for row in tables["links"]] == metrics["links/bytes"].tolist()
    assert [row["slice"] for row in tables["links"]] == [bench.slices[k] for k in metrics["links/slice"]]
    assert "final" not in tables

    consolidate(bench.path)
    assert export(bench.path) == tables


def test_before_the_first_evaluation_there_are_fewer_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path / "run", make_job(RING))
    bench.add(3, evaluated=False)
    capsys.readouterr()
    assert set(export(bench.path)) == {"agents", "rounds", "bytes", "ranks", "links"}
    assert capsys.readouterr().out.splitlines()[0] == str(bench.path / "csv" / "agents.csv")


def test_a_hundred_million_rows_are_not_held_in_memory() -> None:
    count = 10_000
    loss = np.broadcast_to(0.5, (count, count))
    tracemalloc.start()
    columns = _tidy({"round": np.arange(count), "kind": ["top"] * count}, loss=loss)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert columns["kind"].size == count**2
    assert peak_bytes < 10_000_000


def test_texts_with_commas_and_quotes_come_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", make_job(RING))
    bench.components = ['odd "slice", with\nall of it', "größe"]
    bench.add(2)
    rows = export(bench.path)["consensus"]
    assert column(rows, "slice") == bench.components
    read_bytes = (bench.path / "csv" / "consensus.csv").read_bytes()
    assert read_bytes.startswith(b"round,slice,component,consensus_distance\r\n")
    assert read_bytes.endswith(b"\r\n")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "--csv"]) == 5
    assert "no run has started here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path)])
    assert "--csv" in capsys.readouterr().err
    bench = Bench(tmp_path / "run", make_job(RING))
    bench.add(1)
    (tmp_path / "taken").write_text("")
    assert main(["export", str(bench.path), "--csv", "--out", str(tmp_path / "taken")]) == 5
    assert f"{tmp_path}/taken: can't be written" in capsys.readouterr().err
