"""Scaling studies: errors with their lines, agents dealt to the entries of a job, and scaling.h5 written and read."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling_cases import make_measured, make_scaling, write_scaling_study

from parse_mpi.errors import StorageError, StudyError
from parse_mpi.run.phases import PHASES
from parse_mpi.scaling.points import check_points, make_points, shares
from parse_mpi.scaling.reading import read_scaling_study
from parse_mpi.scaling.scalingfile import Launched, load_scaling, write_scaling_file

READY = sorted((Path(__file__).parents[2] / "jobs" / "scaling").glob("*.yaml"))

WRONG = {
    "an unknown key": ({"repeat": 3}, "unknown key `repeat`"),
    "no kind": ({"curves": {"strong": {"kind": None}}}, "kind"),
    "another kind": ({"curves": {"strong": {"kind": "strnog"}}}, "did you mean strong?"),
    "a key of another kind": ({"curves": {"strong": {"agents_per_rank": 3}}}, "agents_per_rank"),
    "sizes that do not ascend": ({"curves": {"strong": {"ranks": [2, 1]}}}, "must ascend"),
    "no such job": ({"job": "none.yaml"}, "there is no job file"),
    "rounds of its own": (
        {"settings": {"train.rounds": 3}},
        "`warm_up` and `rounds` of the study set it",
    ),
    "agents of its own": ({"settings": {"agents.0.count": 3}}, "the curves change how many"),
    "an unknown key of the job": ({"settings": {"train.lr": 3}}, "unknown key `train.lr`"),
    "a wrong value of the job": ({"settings": {"train.batch_size": 0}}, "`train.batch_size` is 0"),
    "too few agents": ({"curves": {"strong": {"agents": 1}}}, "1 agents can't be of 2 kinds"),
    "a time that is none": ({"launch": {"time_limit": "soon"}}, "launch.time_limit"),
    "a name that is none": ({"curves": {"a b": {"kind": "group", "agents": [3]}}}, "can't be the name"),
    "more ranks than agents": ({"curves": {"strong": {"ranks": [9]}}}, "with 3 agents on 9 ranks"),
}


@pytest.mark.parametrize(("changes", "what"), WRONG.values(), ids=WRONG)
def test_errors_have_file_and_line(changes, what, tmp_path):
    path = write_scaling_study(tmp_path, changes)
    with pytest.raises(StudyError) as raised:
        check_all(path)
    (problem,) = raised.value.problems
    assert re.fullmatch(r".*study\.yaml:\d+", problem.where)
    assert what in str(problem)


def check_all(path):
    study = read_scaling_study(path)
    check_points(study, make_points(study))


def test_the_line_is_that_of_the_key(tmp_path):
    path = write_scaling_study(tmp_path, {"settings": {"train.batch_size": 0, "evaluate.every": 0}})
    with pytest.raises(StudyError) as raised:
        check_all(path)
    lines = path.read_text().splitlines()
    for problem, key in zip(raised.value.problems, ("train.batch_size", "evaluate.every"), strict=True):
        assert lines[int(problem.where.rpartition(":")[2]) - 1].strip() == f"{key}: 0"


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    changes = {"rounds": 0, "repeats": "three", "curves": {"strong": {"ranks": []}}}
    with pytest.raises(StudyError) as raised:
        read_scaling_study(write_scaling_study(tmp_path, changes))
    assert len(raised.value.problems) == 3


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 5000))
def test_agents_are_dealt_in_proportion(counts, total):
    if total < len(counts):
        with pytest.raises(ValueError, match="kinds"):
            shares(counts, total)
        return
    dealt = shares(counts, total)
    assert sum(dealt) == total
    assert min(dealt) >= 1
    wanted = np.array(counts) * total / sum(counts)
    assert (np.array(dealt) > wanted - 1 - len(counts)).all()  # those that get 1 at least take it from others
    if wanted.min() >= 1:
        assert np.abs(np.array(dealt) - wanted).max() < 1


def test_points_are_sized_as_their_curves_say(tmp_path):
    curves = {
        "strong": {"kind": "strong", "ranks": [1, 3], "agents": 12},
        "spread": {"kind": "strong", "ranks": [1, 3], "ranks_per_node": 2},
        "weak": {"kind": "weak", "ranks": [1, 2], "agents_per_rank": 6, "ranks_per_node": 1},
        "group": {"kind": "group", "agents": [4, 40]},
    }
    study = read_scaling_study(write_scaling_study(tmp_path, {"curves": {"strong": None, **curves}, "repeats": 2}))
    points = make_points(study)
    sizes = [(p.curve, p.ranks, p.nodes, p.agents, p.repeat) for p in points]
    once = [
        ("strong", 1, 1, 12), ("strong", 3, 1, 12), ("spread", 1, 1, 3), ("spread", 3, 2, 3), ("weak", 1, 1, 6),
        ("weak", 2, 2, 12), ("group", 1, 1, 4), ("group", 1, 1, 40),
    ]  # fmt: skip
    assert sizes == [(*size, repeat) for repeat in (0, 1) for size in once]
    assert len({point.trial.folder for point in points}) == len(points)
    for point in points:
        assert sum(entry.count for entry in point.trial.job.agents) == point.agents
        assert point.trial.job.train.rounds == 3
        assert point.trial.ranks == point.ranks


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_studies_are_sound(path):
    study = read_scaling_study(path)
    points = make_points(study)
    check_points(study, [point for point in points if point.agents <= 1000])


def test_scaling_h5_comes_back_as_it_was_written(tmp_path):
    seconds = np.random.default_rng(0).uniform(0, 1, (5, 2, len(PHASES)))
    launches = [
        Launched(
            "strong", 2, 1, 8, 0, "finished", result=make_measured(seconds, ["a", "b"], work=3.0, bytes_between=9.0)
        ),
        Launched("strong", 4, 2, 8, 0, "failed", "exit code 1: full"),
        Launched("strong", 8, 2, 8, 0, "missing"),
    ]
    written = make_scaling(launches, {"strong": "strong"})
    write_scaling_file(tmp_path / "scaling.h5", written)
    read = load_scaling(tmp_path / "scaling.h5")
    for name in ("name", "job", "order", "kinds", "warm_up", "provenance"):
        assert getattr(read, name) == getattr(written, name)
    for before, after in zip(written.launches, read.launches, strict=True):
        assert (before.point, before.repeat, before.status, before.reason) == (
            after.point, after.repeat, after.status, after.reason,
        )  # fmt: skip
        assert (before.result is None) == (after.result is None)
    before, after = written.launches[0].result, read.launches[0].result
    assert after.phase == PHASES
    for name in ("round", "seconds", "travel_seconds", "sent_bytes", "host", "host_cores", "threads", "peak_bytes"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.loads.table(), before.loads.table())


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "scaling.h5"
    write_scaling_file(path, make_scaling([], {}))
    path.write_bytes(path.read_bytes().replace(b"made-up", b"made-op"))
    with pytest.raises(StorageError):
        load_scaling(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "something"
    with pytest.raises(StorageError, match="no result of parse-mpi scaling"):
        load_scaling(path)
