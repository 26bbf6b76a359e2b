"""parse-mpi compare: what is tuned on, what is chosen, and what decides nothing."""

import math
import re
import shutil

import h5py
import numpy as np
import pytest
from compare_cases import LOCAL, TUNING, InProcess, values, write_study
from small_jobs import write_dataset

from parse_mpi.cli import main
from parse_mpi.compare import pool
from parse_mpi.compare.choices import read_choices
from parse_mpi.compare.runner import Comparison, Share
from parse_mpi.compare.studyfile import load_study
from parse_mpi.jobfile import load_job
from parse_mpi.run.summary import evaluation
from parse_mpi.storage.metrics import read_metrics


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
