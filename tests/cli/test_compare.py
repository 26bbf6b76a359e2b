"""parse-mpi compare: what is launched, what is kept, what is tuned on, and what is left behind."""

import csv
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from compare_cases import TUNING, InProcess, in_process, write_study
from damage import flip
from launch import ROOT, child_environment
from small_jobs import write_dataset

from parse_mpi.cli import main
from parse_mpi.compare import pool
from parse_mpi.compare.choices import read_choices
from parse_mpi.compare.runner import Comparison, Share
from parse_mpi.compare.studyfile import load_study
from parse_mpi.jobfile import load_job
from parse_mpi.run.summary import evaluation
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.owner import Owner, look
from parse_mpi.storage.rundir import RunDirectory

PUBLISHED = runpy.run_path(str(ROOT / "benchmarks" / "published.py"))
LOCAL = {"cells": {"method": {"parse": None}}}
FAILING = {"cells": {"rate": {"fine": {}, "wild": {"train.optimiser.lr": 1000.0, "train.rounds": 30}}}}


@pytest.fixture
def started(monkeypatch):
    """The commands of all launches, which run inside this process."""
    return in_process(monkeypatch)


def ledger(out):
    with open(out / "ledger.csv", newline="") as file:
        return list(csv.DictReader(file))


def values(command, key):
    """What a command sets a key to, in order."""
    return [json[len(key) + 1 :] for json in command if json.startswith(f"{key}=")]


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


def test_only_the_cells_whose_job_has_changed_run_anew(tmp_path, started):
    out, weaker = tmp_path / "out", {"cells": {"method": {"parse": {"method": {"name": "parse", "beta": 0.25}}}}}
    Comparison(write_study(tmp_path, {"seeds": [100]}), out, {}).run()
    del started[:]
    Comparison(write_study(tmp_path, {"seeds": [100], **weaker}), out, {}).run()
    assert [command[command.index("--out") + 1] for command in started] == [str(out / "cells" / "digits,parse,100")]
    assert "--fresh" in started[0]
    for method in ("parse", "local"):
        job = load_job(out / "cells" / f"digits,{method},100" / "job.yaml").job
        assert (job.method.beta == 0.25) == (method == "parse")

    del started[:]
    Comparison(write_study(tmp_path, {"seeds": [100], **weaker}, {"train": {"rounds": 3}}), out, {}).run()
    assert len(started) == 2


def test_an_unfinished_cell_goes_on_where_it_was(tmp_path, started):
    out, study = tmp_path / "out", write_study(tmp_path, {"seeds": [100]})
    comparison = Comparison(study, out, {})
    trial = comparison.cells({})[0]
    command = ["run", str(trial.base), "--out", str(out / trial.folder), "--stop-after", "1"]
    InProcess([sys.executable, "-m", "parse_mpi", *command, *_sets(trial)], 1, 1, 60, out / "logs" / "first.log")
    assert comparison.run().result
    assert "resuming after round 1" in (out / "logs" / "cells" / f"{trial.name}.log").read_text()


def _sets(trial):
    return [word for key, value in trial.overrides.items() for word in ("--set", f"{key}={value}")]


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


def test_tuning_picks_the_best_on_validation_and_freezes_it(tmp_path, started):
    out, study = (
        tmp_path / "out",
        write_study(tmp_path, {"tuning": {**TUNING, "configurations": 3, "seeds": [1, 2]}, **LOCAL}),
    )
    assert Comparison(study, out, {}).run().result
    tuning, cells = started[:6], started[6:]
    assert all(values(command, "evaluate.test") == ["false"] for command in tuning)
    assert [values(command, "seed")[0] for command in tuning] == ["1", "2"] * 3
    assert all(values(command, "evaluate.test") == ["true"] for command in cells)
    for folder in (out / "tuning").iterdir():
        assert load_job(folder / "job.yaml").job.evaluate.test is False
        accuracy = read_metrics(folder)["evaluations/accuracy"]
        assert np.isnan(accuracy[:, :, 1]).all()
        assert not np.isnan(accuracy[:, :, 0, 0, 0]).any()

    loaded, choices = load_study(out / "study.h5"), read_choices(out)
    assert loaded.tuning == choices
    for (data, method), choice in choices.items():
        means = []
        for number in range(3):
            best = []
            for seed in (1, 2):
                metrics = read_metrics(out / "tuning" / f"{data},{method},{number},{seed}")
                best.append(evaluation(metrics, -1, "validation").of(None, "ensemble").mean())
            means.append(np.mean(best))
        assert choice.chosen == int(np.argmax(means))
        assert [one.score for one in choice.tried] == pytest.approx(means)
        assert choice.tried[0].settings == {}
        for cell in loaded.select(data=data, method=method):
            lr = load_job(out / "cells" / cell.name / "job.yaml").job.train.optimiser.lr
            assert lr == choice.settings.get("train.optimiser.lr", 0.1)

    shutil.rmtree(out / "tuning")
    assert Comparison(study, out, {}).run().result
    assert len(started) == 8


def test_tuning_never_sees_the_test_samples_nor_their_labels(tmp_path, started):
    """The same choice from a file whose test samples and labels were replaced by garbage."""
    agents = [{"modalities": ["a"], "count": 2}, {"modalities": ["a", "b"], "count": 2}]
    job = {"agents": agents, "data": {"source": {"hdf5": "data.h5"}}, "topology": {"kind": "complete"}}
    choices, test_accuracy = [], []
    for name in ("sound", "garbage"):
        folder = tmp_path / name
        folder.mkdir()
        study = write_study(folder, {"tuning": {**TUNING, "configurations": 3}, "seeds": [100], **LOCAL}, job)
        data = write_dataset(folder / "data.h5")
        if name == "garbage":
            with h5py.File(data, "r+") as file:
                test = np.flatnonzero(file["split"][:] == 2)
                file["labels"][test] = (file["labels"][:][test] + 1) % 4
                for modality in ("a", "b"):
                    values = file[f"modalities/{modality}"]
                    values[:] = np.where(
                        np.isin(np.arange(len(values)), test).reshape(-1, *[1] * (values.ndim - 1)), -7, values
                    )
        ended = Comparison(study, folder / "out", {}).run()
        choices.append(read_choices(folder / "out"))
        cells = load_study(ended.result).cells
        test_accuracy.append([cell.result.accuracy().mean() for cell in cells])
    assert choices[0] == choices[1]
    assert len({tried.score for choice in choices[0].values() for tried in choice.tried}) > 1
    assert test_accuracy[0] != test_accuracy[1]


def test_a_launch_of_tuning_that_was_stopped_decides_nothing(tmp_path, started, monkeypatch, capsys):
    """A time limit that was met says nothing about a configuration: its pair stays open until it is through."""

    class Stopped(InProcess):
        def __init__(self, command, *rest):
            is_tried = "tuning" in command[command.index("--out") + 1]
            super().__init__([*command, *(["--stop-after", "1"] if is_tried else [])], *rest)

    study, out = write_study(tmp_path, {"tuning": TUNING, "seeds": [100], **LOCAL}), tmp_path / "out"
    monkeypatch.setattr(pool, "Launch", Stopped)
    assert main(["compare", str(study), "--out", str(out)]) == 7
    assert "tuning/digits,local,0,1: exit code 0: stopped at round 1 of 2" in capsys.readouterr().err
    assert not (out / "tuning.yaml").exists()
    assert len(started) == 2
    monkeypatch.setattr(pool, "Launch", InProcess)
    assert main(["compare", str(study), "--out", str(out)]) == 0
    (choice,) = read_choices(out).values()
    assert not any(math.isnan(one.score) for one in choice.tried)


def test_a_configuration_that_diverges_is_out_whichever_array_task_has_seen_it(tmp_path, started):
    tuning = {**TUNING, "space": {"all": {"train.optimiser.lr": [1000.0], "train.rounds": [30]}}}
    study, out = write_study(tmp_path, {"tuning": tuning, "seeds": [100], **LOCAL}), tmp_path / "out"
    for number in (2, 1):
        Comparison(study, out, {}).run(Share(number, 2))
    (choice,) = read_choices(out).values()
    assert choice.chosen == 0
    assert [math.isnan(one.score) for one in choice.tried] == [False, True]

    (out / "tuning.yaml").unlink()
    del started[:]
    Comparison(study, out, {}).run()
    assert read_choices(out) == {("digits", "local"): choice}
    assert started == []


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


def test_results_outlive_the_run_directories_they_came_from(tmp_path, started):
    """study.h5 is enough: its cells are not run again, unless their job is another by now."""
    out, study = tmp_path / "out", write_study(tmp_path, {"tuning": TUNING})
    Comparison(study, out, {}).run()
    before, launches = load_study(out / "study.h5"), len(started)
    for name in ("cells", "tuning"):
        shutil.rmtree(out / name)
    (out / "tuning.yaml").unlink()
    del started[:]
    again = Comparison(study, out, {})
    assert again.unfinished() == ([], [])
    assert again.run().result
    after = load_study(out / "study.h5")
    assert not started
    assert launches
    assert after.tuning == before.tuning
    assert after.provenance["commit"] == before.provenance["commit"]
    for old, new in zip(before.cells, after.cells, strict=True):
        assert (old.name, old.job_digest, old.status) == (new.name, new.job_digest, new.status)
        np.testing.assert_array_equal(old.result.last, new.result.last)
        np.testing.assert_array_equal(old.result.final.predicted, new.result.final.predicted)

    weaker = {"cells": {"method": {"parse": {"method": {"name": "parse", "beta": 0.25}}}}, "tuning": TUNING}
    ended = Comparison(write_study(tmp_path, weaker), out, {}).run()
    assert ended.aside == out / "study.previous-1.h5"  # or what the study asks for no more would be lost
    for old, kept in zip(before.cells, load_study(ended.aside).cells, strict=True):
        np.testing.assert_array_equal(old.result.last, kept.result.last)
    cells = [command[command.index("--out") + 1] for command in started if "/cells/" in " ".join(command)]
    assert sorted(cells) == [str(out / "cells" / f"digits,parse,{seed}") for seed in (100, 101)]

    longer = Comparison(write_study(tmp_path, weaker, {"evaluate": {"every": 2}}), out, {})
    assert {trial.levels["method"] for trial in longer.unfinished()[0]} == {"parse", "local"}


def test_a_study_file_that_can_not_be_read_is_not_written_over(tmp_path, started, capsys):
    out, study = tmp_path / "out", write_study(tmp_path, LOCAL)
    Comparison(study, out, {}).run()
    shutil.rmtree(out / "cells")
    flip(out / "study.h5", (out / "study.h5").stat().st_size // 2)
    damaged = (out / "study.h5").read_bytes()
    del started[:]
    for more in ([], ["--report"]):
        assert main(["compare", str(study), "--out", str(out), *more]) == 5
        assert "study.h5" in capsys.readouterr().err
    assert started == []
    assert (out / "study.h5").read_bytes() == damaged


def test_kept_results_take_the_name_that_an_axis_has_now(tmp_path, started):
    out = tmp_path / "out"
    Comparison(write_study(tmp_path, {**LOCAL, "cells": {**LOCAL["cells"], "lr": {"a": {}}}}), out, {}).run()
    shutil.rmtree(out / "cells")
    del started[:]
    renamed = write_study(tmp_path, {**LOCAL, "cells": {**LOCAL["cells"], "self": {"a": {}}}})
    Comparison(renamed, out, {}).run()
    assert started == []
    assert len(load_study(out / "study.h5").select(**{"self": "a", "method": "local"})) == 2


def test_published_results_need_neither_jobs_nor_data_and_are_gone_on_from(tmp_path, started, capsys):
    out, packed, alone = tmp_path / "out", tmp_path / "small.h5.xz", tmp_path / "alone"
    study = write_study(tmp_path, {**FAILING, "seeds": [100]})
    assert main(["compare", str(study), "--out", str(out)]) == 7
    PUBLISHED["main"](["pack", str(out), str(packed)])
    PUBLISHED["main"](["unpack", str(packed), str(alone)])
    assert ledger(alone) == ledger(out)
    study.rename(tmp_path / "elsewhere.yaml")
    capsys.readouterr()
    assert main(["report", str(alone)]) == 0
    assert str(alone / "study.md") in capsys.readouterr().out

    def tables(folder):
        return [line for line in (folder / "study.md").read_text().splitlines() if not line.startswith("- command")]

    assert tables(alone) == tables(out)
    with pytest.raises(SystemExit, match="is there already"):
        PUBLISHED["main"](["unpack", str(packed), str(alone)])
    del started[:]
    (tmp_path / "elsewhere.yaml").rename(study)
    assert main(["compare", str(study), "--out", str(alone), "--only", "rate=fine"]) == 0
    assert started == []


def test_what_tuning_would_try_is_planned_before_anything_starts(tmp_path, started, capsys):
    sparse = {"topology": [{"kind": "erdos-renyi", "probability": 0.001}]}
    study = write_study(tmp_path, {"tuning": {**TUNING, "space": {"all": sparse}}})
    assert main(["compare", str(study), "--out", str(tmp_path / "out")]) != 0
    assert "connected" in capsys.readouterr().err
    assert started == []


def test_tuning_without_validation_samples_is_refused(tmp_path, started, capsys):
    job = {"agents": [{"modalities": ["a"], "count": 2}], "data": {"source": {"hdf5": "data.h5"}}}
    study = write_study(tmp_path, {"tuning": TUNING, **LOCAL}, job)
    with h5py.File(write_dataset(tmp_path / "data.h5"), "r+") as file:
        file["split"][:] = np.where(file["split"][:] == 1, 0, file["split"][:])
    assert main(["compare", str(study), "--out", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert "tuning chooses by accuracy on validation samples, and the data have none" in said
    assert re.search(r"study.yaml:\d+", said)
    assert started == []


def test_a_share_is_done_when_its_own_cells_are(tmp_path, started):
    """So that a task of an array knows when to stop putting itself back into the queue."""
    out, study = tmp_path / "out", write_study(tmp_path)
    assert Comparison(study, out, {}).run(Share(1, 2)).open == 0
    assert Comparison(study, out, {}).run(Share(2, 2)).open == 0
    assert len(started) == 4
