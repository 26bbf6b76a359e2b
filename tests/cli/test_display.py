"""What a person sees: the bar on a terminal, the lines of a log, and a table whose numbers are those of the metrics."""

import os
import pty
import re
import socket
import subprocess

import numpy as np
import pytest
from launch import ROOT, child_environment
from real_runs import command, train
from small_jobs import write_dataset, write_job

from parse_mpi.exchange.host import usable_cores
from parse_mpi.run.summary import accuracy_table, cost_lines
from parse_mpi.storage.metrics import read_metrics


def on_a_terminal(arguments, columns=80):
    """Everything a command writes to a pseudo-terminal of this width."""
    ours, theirs = pty.openpty()
    environment = child_environment() | {"COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        chunks = []
        while True:
            try:
                chunk = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(ours)
    return process.returncode, b"".join(chunks).decode("utf-8", "replace")


def test_a_terminal_shows_a_bar_and_a_table_within_80_columns(tmp_path):
    code, text = on_a_terminal(command(write_job(tmp_path), tmp_path / "run"))
    assert code == 0
    assert "12/12" in text
    assert "━" in text
    assert "round    12/12" not in text  # that is for logs
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    table = plain[plain.index("Test accuracy") :]
    assert "synergistic" in table
    assert "top+bottom" in table
    assert max(len(line) for line in table.splitlines() if "│" in line) <= 80


def test_a_log_gets_one_line_an_evaluation_from_rank_0_only(tmp_path):
    outcome = train(write_job(tmp_path), tmp_path / "run", 2)
    lines = [line for line in outcome.logs[0].splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["5/12", "10/12", "12/12"]
    assert outcome.logs[1].strip() == ""
    assert "\x1b" not in outcome.logs[0]
    logged = (tmp_path / "run" / "log" / "rank-0000.log").read_text()
    assert all(line in logged for line in lines)


def test_a_log_that_can_not_be_opened_is_said_once_and_stops_nothing(tmp_path):
    (tmp_path / "run" / "log" / "rank-0000.log").mkdir(parents=True)
    outcome = train(write_job(tmp_path), tmp_path / "run", 1)
    assert outcome.logs[0].count("rank-0000.log can't be written: ") == 1


@pytest.mark.parametrize("sink", ["full disk", "closed pipe"])
def test_an_output_that_takes_nothing_does_not_end_a_run(sink, tmp_path):
    reader, pipe = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") if sink == "full disk" else os.fdopen(pipe, "w") as output:
        done = subprocess.run(
            command(write_job(tmp_path), tmp_path / "run"),
            stdout=output, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=child_environment(), timeout=120,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "round    12/12" in (tmp_path / "run" / "log" / "rank-0000.log").read_text()


def test_the_table_shows_the_numbers_of_the_metrics(tmp_path):
    train(write_job(tmp_path), tmp_path / "run", 2)
    metrics = read_metrics(tmp_path / "run")
    accuracy, kinds = metrics["evaluations/accuracy"], metrics["agents/kind"]
    names = list(metrics.attributes["evaluations/accuracy"]["prediction"])
    table = accuracy_table(metrics)
    cells = {column.header: list(column.cells) for column in table.columns}
    for row, kind in enumerate(cells["agents"]):
        chosen = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        assert cells["n"][row] == str(chosen.sum())
        for head in ("ensemble", "unique", "redundant", "synergistic"):
            values = accuracy[-1, chosen, 1, 0, names.index(head)]
            values = values[~np.isnan(values)]
            assert cells[head][row] == (f"{values.mean():.3f} {values.min():.3f}" if len(values) else "–")
    best = accuracy[:, :, 0, 0, 0].mean(1).argmax()
    assert f"best round on validation: {metrics['evaluations/round'][best]}," in table.caption
    costs, ending = list(cost_lines(metrics)), metrics["ending/seconds"]
    slowest = (metrics["ranks/seconds"].sum(0) + ending).sum(1).max()
    assert costs[1].startswith(f"time: {slowest:.1f} s in 12 rounds")
    assert ending[:, list(metrics.attributes["ranks/seconds"]["phase"]).index("checkpoint")].min() > 0
    assert metrics["links/bytes"].sum() == metrics["ranks/sent_bytes"].sum()
    assert metrics["ending/host"].tolist() == [socket.gethostname()] * len(ending)
    assert metrics["ending/host_cores"].tolist() == [usable_cores()] * len(ending)
    assert metrics["ending/threads"].tolist() == [1] * len(ending)
    assert 100_000_000 < metrics["ending/peak_bytes"].min() <= metrics["ending/peak_bytes"].max() < 2_000_000_000


@pytest.mark.parametrize("without", ["validation", "test"])
def test_an_empty_split_and_an_untrained_class_are_said_and_do_no_harm(tmp_path, without):
    import h5py

    data = write_dataset(tmp_path / "abc.h5")
    with h5py.File(data, "r+") as file:
        split = file["split"][:]
        split[split == {"validation": 1, "test": 2}[without]] = 0
        labels = file["labels"][:]
        labels[split == 0] %= 3
        file["split"][:], file["labels"][:] = split, labels
    changes = {"data": {"source": {"hdf5": str(data)}}, "agents": [{"modalities": ["a", "b"], "count": 3}]}
    outcome = train(write_job(tmp_path, changes), tmp_path / "run", 1)
    assert f"has no {without} samples" in outcome.logs[0]
    assert "no training sample has the class 3" in outcome.logs[0]
    assert ("best round on validation" in outcome.logs[0]) == (without == "test")


def test_agents_that_are_away_do_not_count(tmp_path):
    """Each round has its own kinds; means, and the choice of the best round, are over the agents that were there."""
    events = [
        {"kind": "lose", "round": 2, "agents": [6, 7], "modality": "top"},
        {"kind": "leave", "round": 4, "agents": [0, 8]},
        {"kind": "join", "round": 10, "agents": [9]},
    ]
    outcome = train(write_job(tmp_path, {"events": events, "train": {"rounds": 8}}), tmp_path / "run", 2)
    assert "10 agents (3 top, 3 bottom, 3 top+bottom, 1 away)" in outcome.logs[0]
    assert "what happens after round 10 or later is not part of this run" in outcome.logs[0]
    metrics = read_metrics(tmp_path / "run")
    accuracy = metrics["evaluations/accuracy"][:, :, :, 0, 0]  # [evaluation, agent, split]
    held = ["", "top", "top", "bottom", "bottom", "bottom", "bottom", "bottom", "", ""]
    table = accuracy_table(metrics)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["agents"] == ["top", "bottom", "all"]
    assert cells["n"] == ["2", "5", "7"]
    for kind, shown in zip(cells["agents"], cells["ensemble"], strict=True):
        values = accuracy[-1, [i for i, k in enumerate(held) if k and kind in (k, "all")], 1]
        assert shown == f"{values.mean():.3f} {values.min():.3f}"
    best = np.nanmean(accuracy[:, :, 0], axis=1).argmax()
    assert "away in this round: 3 agents" in table.caption
    expected = f"{metrics['evaluations/round'][best]}, there the ensemble has {np.nanmean(accuracy[best, :, 1]):.3f}"
    assert f"best round on validation: {expected}" in table.caption
