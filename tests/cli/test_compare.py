"""parse-mpi compare: what is launched, what is reported, and what is left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from compare_cases import FAILING, LOCAL, TUNING, InProcess, ledger, write_study
from launch import ROOT, child_environment

from parse_mpi.cli import main
from parse_mpi.compare import pool
from parse_mpi.compare.runner import Comparison, Share
from parse_mpi.compare.studyfile import load_study
from parse_mpi.jobfile import load_job
from parse_mpi.run.summary import evaluation
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.owner import Owner, look
from parse_mpi.storage.rundir import RunDirectory


def test_every_cell_is_launched_once_and_its_result_is_that_of_its_run(tmp_path, started):
    out = tmp_path / "out"
    comparison = Comparison(write_study(tmp_path), out, {})
    ended = comparison.run()
    assert (ended.failed, ended.open, ended.result) == ({}, 0, out / "study.h5")
    study = load_study(out / "study.h5")
    assert [(cell.levels["method"], cell.seed) for cell in study.cells] == [
        ("parse", 100), ("parse", 101), ("local", 100), ("local", 101)
    ]  # fmt: skip
    for cell in study.cells:
        metrics = read_metrics(out / "cells" / cell.name)
        job = load_job(out / "cells" / cell.name / "job.yaml").job
        assert (job.method.name, job.seed) == (cell.levels["method"], cell.seed)
        for split in ("validation", "test"):
            expected = evaluation(metrics, -1, split).accuracy
            found = [cell.result.accuracy(name, split=split) for name in cell.result.prediction]
            np.testing.assert_array_equal(np.stack(found, axis=1), expected)
        curve = cell.result.curve
        whole = curve.accuracy[-1, curve.kind.index("all"), 1, 0]
        assert whole == pytest.approx(evaluation(metrics, -1, "test").of(None, "ensemble").mean())
        assert curve.payload_bytes[-1] == metrics["rounds/payload_bytes"].sum() == cell.result.payload_bytes
        assert (cell.levels["method"] == "local") == (cell.result.payload_bytes == 0)
        assert cell.result.gradient_steps.tolist() == [2] * 3
        np.testing.assert_array_equal(cell.result.final.predicted, metrics["final/predicted"])
        assert cell.result.final.pair
    assert len(started) == 4

    again = Comparison(tmp_path / "study.yaml", out, {}).run()
    assert again.result
    assert len(started) == 4
    lines = ledger(out)
    assert [line["outcome"] for line in lines].count("finished") == 4
    assert len({line["launch"] for line in lines}) == len(lines) / 2 == 4


def test_a_failed_cell_is_told_and_stops_no_other(tmp_path, started, capsys):
    out = tmp_path / "out"
    study = write_study(tmp_path, {**FAILING, "seeds": [100]})
    assert main(["compare", str(study), "--out", str(out)]) == 7
    said = capsys.readouterr()
    assert "2 failures; the same command tries again" in said.err
    assert re.search(r"digits,parse,wild,100: exit code 6: failed: .*not finite", said.err)
    cells = {cell.name: cell for cell in load_study(out / "study.h5").cells}
    assert cells["digits,parse,fine,100"].result is not None
    failed = cells["digits,parse,wild,100"]
    assert (failed.status, failed.result) == ("failed", None)
    assert "not finite" in failed.reason
    assert [line["outcome"] for line in ledger(out)].count("failed") == 2

    assert main(["compare", str(study), "--out", str(out), "--only", "rate=fine"]) == 0
    assert "2 cells failed in an earlier call; study.md says why" in capsys.readouterr().out
    for there in (True, False):  # a report tells it as well, also when the run directories are gone
        assert main(["compare", str(study), "--out", str(out), "--report"]) == 0
        told = {cell.name: (cell.status, cell.reason) for cell in load_study(out / "study.h5").cells}
        assert {status for status, _ in told.values()} == {"finished", "failed"}
        assert "not finite" in told["digits,parse,wild,100"][1]
        assert "not finite" in (out / "study.md").read_text()
        if there:
            shutil.rmtree(out / "cells")


def test_a_damaged_cell_is_told_and_stops_no_other(tmp_path, started, capsys):
    """A person has to look at it: nothing is launched into what can't be read."""
    out, study = tmp_path / "out", write_study(tmp_path)
    Comparison(study, out, {}).run(Share(1, 2))
    damaged, *_ = sorted((out / "cells").iterdir())
    (damaged / "state.json").write_text("{")
    del started[:]
    assert main(["compare", str(study), "--out", str(out)]) == 7
    assert len(started) == 2
    said = capsys.readouterr()
    assert re.search(rf"{damaged.name}: not launched\n +.*state.json", said.out)
    assert re.search(rf"{damaged.name}: .*state.json", said.err)
    assert main(["compare", str(study), "--out", str(out), "--report"]) == 0
    cells = {cell.name: cell for cell in load_study(out / "study.h5").cells}
    assert {name for name, cell in cells.items() if cell.status == "failed"} == {damaged.name}
    assert "state.json" in cells[damaged.name].reason


@pytest.mark.parametrize("purpose", ["cells", "tuning"])
def test_damaged_metrics_are_a_failure_of_their_launch_alone(purpose, tmp_path, started, monkeypatch, capsys):
    class Damaging(InProcess):
        def __init__(self, command, *rest):
            super().__init__(command, *rest)
            run = Path(command[command.index("--out") + 1])
            if (run.parent.name, run.name[-3:]) in (("cells", "100"), ("tuning", "0,1")):
                for file in [run / "metrics.h5", *run.glob("metrics/*")]:
                    file.write_bytes(b"no longer HDF5")

    monkeypatch.setattr(pool, "Launch", Damaging)
    study, out = write_study(tmp_path, {"tuning": TUNING if purpose == "tuning" else None, **LOCAL}), tmp_path / "out"
    assert main(["compare", str(study), "--out", str(out)]) == 7
    assert "metrics" in capsys.readouterr().err
    assert [line["outcome"] for line in ledger(out)].count("failed") >= 1
    if purpose == "cells":
        assert [cell.status for cell in load_study(out / "study.h5").cells] == ["failed", "finished"]


def test_shares_of_array_tasks_are_all_cells_once_and_a_plain_compare_collects(tmp_path, started):
    study, out = write_study(tmp_path), tmp_path / "out"
    for number in (1, 2, 3):
        ended = Comparison(study, out, {}).run(Share(number, 3))
        assert ended.result is None
    assert len(started) == 4
    assert not (out / "study.h5").exists()
    assert Comparison(study, out, {}).run().result
    assert len(started) == 4


def test_a_cell_that_another_launch_is_at_work_on_is_left_to_it(tmp_path, started):
    study, out = write_study(tmp_path, {"seeds": [100]}), tmp_path / "out"
    comparison = Comparison(study, out, {})
    busy = RunDirectory(out / comparison.cells({})[0].folder)
    busy.make()
    owner = Owner.claim(busy, print, print)
    try:
        ended = comparison.run()
    finally:
        owner.release()
    assert (ended.failed, ended.open, ended.result) == ({}, 1, None)
    assert len(started) == 1
    assert Comparison(study, out, {}).run().result


def test_nothing_is_launched_shortly_before_the_slurm_job_ends(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    arguments = ["compare", str(write_study(tmp_path)), "--out", str(tmp_path / "out")]
    assert main(arguments) == 75
    assert "time limit of the Slurm job: all launches have ended; the same command goes on" in capsys.readouterr().err
    assert started == []
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100_000))
    assert main([*arguments, "--only", "method=local"]) == 75
    assert len(started) == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--task", "0", "--tasks", "3"], "K is 1 to N"),
        (["--task", "4", "--tasks", "3"], "K is 1 to N"),
        (["--tasks", "3"], "belong together"),
        (["--plan", "--report"], "not allowed with"),
        (["--only", "method=parse,method=local"], "names two levels of an axis"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, what, tmp_path, started, capsys):
    arguments = ["compare", str(write_study(tmp_path)), "--out", str(tmp_path / "out"), *options]
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code
    assert what in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_starts_no_cell_and_says_what_was_measured(tmp_path, started, capsys):
    study, out = write_study(tmp_path, {"tuning": TUNING}), tmp_path / "out"
    arguments = ["compare", str(study), "--out", str(out), "--plan"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 cells and 4 launches of tuning are left: about 0:" in said
    assert said.count("extrapolated from 6 rounds") == 2
    assert {command[command.index("--out") + 1].split("/")[-2] for command in started} == {"calibration"}
    assert main(arguments) == 0
    assert len(started) == 2
    capsys.readouterr()
    Comparison(study, out, {"method": "parse"}).run()
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 cells and 2 launches of tuning are left" in said
    assert "extrapolated from 6 rounds" in said


def test_a_plan_without_a_calibration_says_that_it_takes_more(tmp_path, started, monkeypatch, capsys):
    class Broken(InProcess):
        def __init__(self, command, *rest):
            is_local = "local" in command[command.index("--out") + 1]
            super().__init__([*command, *(["--no-such-option"] if is_local else [])], *rest)

    monkeypatch.setattr(pool, "Launch", Broken)
    study = write_study(tmp_path)
    assert main(["compare", str(study), "--out", str(tmp_path / "out"), "--plan"]) == 0
    said = capsys.readouterr().out
    assert said.count("unknown: its calibration failed") == 1
    assert "4 cells and 0 launches of tuning are left: more than 0:" in said


def test_a_directory_of_something_else_is_refused(tmp_path, started, capsys):
    study, out = write_study(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("")
    assert main(["compare", str(study), "--out", str(out)]) == 5
    assert "holds something else than a study" in capsys.readouterr().err
    (out / "thesis.tex").unlink()
    Comparison(study, out, {})
    assert main(["compare", str(write_study(tmp_path, {"name": "other"})), "--out", str(out)]) == 5
    assert "holds the study small, not other" in capsys.readouterr().err


def test_a_sigterm_ends_all_launches_and_the_same_command_goes_on(tmp_path):
    """The cell writes a checkpoint, nothing is left running, and what follows begins where it was."""
    only_parse = {"seeds": [100], "cells": {"method": {"local": None}}}
    job = {"train": {"rounds": 100_000}, "evaluate": {"every": 100_000}, "checkpoint": {"every": 20}}
    study, out = write_study(tmp_path, only_parse, job), tmp_path / "out"
    command = [sys.executable, "-m", "parse_mpi", "compare", str(study), "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    run = RunDirectory(out / "cells" / "digits,parse,100")
    until = time.monotonic() + 60
    while not ((state := run.read_state()) and state.round):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    pid = look(run).record.pid
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGTERM: all launches have ended; the same command goes on" in said
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    state = run.read_state()
    assert state.status == "stopped"
    assert 0 < state.round < 100_000
    assert [line["outcome"] for line in ledger(out)] == ["started", "stopped"]


def test_a_share_is_done_when_its_own_cells_are(tmp_path, started):
    """So that a task of an array knows when to stop putting itself back into the queue."""
    out, study = tmp_path / "out", write_study(tmp_path)
    assert Comparison(study, out, {}).run(Share(1, 2)).open == 0
    assert Comparison(study, out, {}).run(Share(2, 2)).open == 0
    assert len(started) == 4
