"""Study files: what they mean, and every problem with its line; study.h5: what is written is what is read."""

import json
import math
from copy import deepcopy
from dataclasses import replace
from itertools import chain

import h5py
import numpy as np
import pytest
from compare_cases import TUNING, write_study
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import METHODS, method_of

from parse_mpi.compare import studyfile
from parse_mpi.compare.choices import Choice, Tried
from parse_mpi.compare.ledger import COLUMNS, Ledger
from parse_mpi.compare.reading import read_study
from parse_mpi.compare.runner import Comparison, Share
from parse_mpi.compare.schema import Compare
from parse_mpi.compare.search import draw_settings, read_draw
from parse_mpi.compare.studyfile import Cell, Curve, Final, Result, Study, load_study
from parse_mpi.compare.trials import Resolver, in_order
from parse_mpi.compare.tuning import configurations
from parse_mpi.data.sampler import make_sampler
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError, StorageError, StudyError
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan


def problems(path):
    """`line: what` of each problem that a study shows, in order."""
    with pytest.raises(StudyError) as caught:
        Comparison(path, path.parent / "out", {})
    assert not (path.parent / "out").exists()
    return [f"{problem.where.replace(str(path), 'study')}: {problem.what}" for problem in caught.value.problems]


def line_of(path, text):
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_all_that_a_study_says_wrong_is_told_at_once(tmp_path):
    path = write_study(
        tmp_path,
        {
            "cells": {
                "data": {"digits": {"job": "nowhere.yaml"}},
                "mix ed": {"a": {}},
                "mix": {"a": {"seed": 3}, "b": {}},
            },
            "seeds": [100, 101, 100],
            "tuning": {
                "seeds": [101],
                "at": {"topology": "ring"},
                "space": {"sheaf": {}, "parse": {"method.beta": {"uniform": [2, 1]}, "train.optimiser.lr": 0.1}},
            },
            "compare": {"method": "parse", "baselines": {"plain": ["parse"]}, "ceiling": "centralized"},
        },
    )
    found = "\n".join(problems(path))
    for text, what in {
        "nowhere": "there is no job file",
        "mix ed": "`mix ed` can't be the name of an axis",
        "seed: 3": "`seed` can't be set here: `seeds` sets it",
        "sheaf": "the axis method has no level sheaf",
        "method.beta": "`method.beta`: `uniform` is [2, 1]; [low, high] needs low < high",
        "train.optimiser.lr": "`train.optimiser.lr`: 0.1 is nothing to draw from",
        "topology": "`tuning.at.topology`: there is no such axis",
        "centralized": "the axis method has no level centralized",
    }.items():
        assert f"study:{line_of(path, text)}: {what}" in found
    assert "seed 100 stands in `seeds` twice" in found
    assert "seed 101 is one of the `seeds` that the methods are compared on" in found
    assert "`tuning.at` must say at which level of mix is tuned" in found
    assert "parse is the method under test, not a baseline" in found


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": []}, "`seeds` is []; it must be a list of at least 1"),
        ({"launch": {"ranks": 0}}, "`launch.ranks` is 0; it must be a whole number (at least 1"),
        ({"launch": {"time_limit": "soon"}}, "`launch.time_limit`: 'soon' is not a time"),
        ({"tunning": {}}, "unknown key `tunning`"),
        ({"cells": {"method": None}}, "`cells.method` is missing"),
        ({"cells": {"data": {"digits": {"job": None}}}}, "`cells.data.digits.job` is missing"),
        ({"budget": {"gradient_steps": 9}, "cells": {"length": {"short": {"train.rounds": 3}}}}, "`budget` does"),
        (
            {"budget": {"gradient_steps": 9}, "tuning": {**TUNING, "space": {"all": {"train.rounds": [3]}}}},
            "`budget` does",
        ),
        ({"cells": {"loss": {"kept": {"train.on_nonfinite": "isolate"}}}}, "drop out of all means"),
        ({"budget": {"gradient_steps": 0}}, "`budget.gradient_steps` is 0; it must be a whole number (at least 1"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(changes, what, tmp_path):
    (found,) = problems(write_study(tmp_path, changes))
    assert what in found
    assert found.startswith("study:")


def test_a_problem_of_a_job_names_the_line_of_the_study_and_the_levels_that_make_it(tmp_path):
    mix = {"a": {"train.batch_sise": 3}, "b": {"agents.1.count": 0}, "c": {}}
    path = write_study(tmp_path, {"cells": {"mix": mix, "method": {"other": {"method": {"name": "parze"}}}}})
    found = problems(path)
    assert len(found) == 3
    assert f"study:{line_of(path, 'batch_sise')}: unknown key `train.batch_sise` (with mix=a)" in found
    assert any(f"study:{line_of(path, 'agents.1')}: `agents.1.count` is 0" in p and "(with mix=b)" in p for p in found)
    assert any("`method.name` is 'parze'" in p and "(with method=other)" in p for p in found)


def test_what_only_data_and_graphs_show_is_found_before_anything_starts(tmp_path):
    mix = {"a": {}, "b": {"agents": [{"modalities": ["middle"], "count": 3}]}}
    (found,) = problems(write_study(tmp_path, {"cells": {"mix": mix}}))
    assert "middle" in found
    assert found.endswith("(with mix=b)")


def test_a_problem_of_some_seeds_names_them(tmp_path):
    job = {"agents": [{"modalities": ["top"], "count": 8}], "topology": {"kind": "erdos-renyi", "probability": 0.3}}
    path = write_study(tmp_path, {"seeds": list(range(6)), "cells": {"method": {"local": None}}}, job)
    apart = set()
    for seed in range(6):
        jobfile = load_job(tmp_path / "job.yaml", [f"seed={seed}"])
        try:
            make_plan(jobfile, load_dataset(jobfile.job.data, seed), 1)
        except JobError:
            apart.add(str(seed))
    assert 0 < len(apart) < 6
    told = [problem.rpartition("(with seed=")[2].rstrip(")").split("|") for problem in problems(path)]
    assert set(chain(*told)) == apart


def test_levels_apply_in_their_order_and_a_whole_mapping_replaces(tmp_path):
    cells = {
        "mix": {"a": {"train": {"rounds": 7}}},
        "data": {"digits": {"job": "job.yaml", "method.beta": 0.9, "train.batch_size": 8}},
        "method": {"parse": {"method": {"name": "parse", "temperature": 0.2}}, "local": None},
        "rate": {"slow": {"train.optimiser.lr": 0.01}},
    }
    study = read_study(write_study(tmp_path, {"cells": cells, "seeds": [5]}))
    (trial,) = Resolver(study).cells(lambda data, method: {})
    job = trial.job
    assert (job.seed, job.train.rounds, job.train.batch_size) == (5, 7, 32)
    assert (job.method.beta, job.method.temperature, job.train.optimiser.lr) == (0.5, 0.2, 0.01)
    assert list(trial.levels) == ["data", "method", "mix", "rate"]


def test_cells_are_tested_and_tuning_is_not_whatever_a_level_says_of_evaluation(tmp_path):
    for says in (True, False):
        mix = {"a": {"evaluate": {"every": 1, "test": says}}}
        study = read_study(write_study(tmp_path, {"cells": {"mix": mix}, "tuning": TUNING}))
        resolver = Resolver(study)
        assert all(trial.job.evaluate.test for trial in resolver.cells(lambda *_: {}))
        tried = [trial for pair in configurations(study, resolver).values() for c in pair for trial in c.trials]
        assert tried
        assert not any(trial.job.evaluate.test for trial in tried)


def test_a_job_read_for_all_seeds_at_once_is_what_its_launch_reads(tmp_path):
    changes = {"budget": {"gradient_steps": 5}, "cells": {"method": {"harmony": {"method": {"name": "harmony"}}}}}
    study = read_study(write_study(tmp_path, changes))
    trials = Resolver(study).cells(lambda *_: {})
    assert [trial.name for trial in trials[:2]] == ["digits,parse,100", "digits,parse,101"]
    for trial in trials:
        assert load_job(trial.base, in_order(trial.overrides)).job == trial.job
        assert trial.job.seed == trial.seed
    assert len({trial.digest for trial in trials}) == len(trials) == 6


def test_methods_are_compared_on_the_same_samples_and_batches(tmp_path):
    """Of every seed: who owns which samples, who is tested on which, in what order an agent sees its own."""
    methods = {case: {"method": deepcopy(method_of(case))} for case in METHODS if "sheaf" not in case}
    cells = {"method": {"parse": None, "local": None} | methods}
    resolver = Resolver(read_study(write_study(tmp_path, {"cells": cells})))
    trials = resolver.cells(lambda *_: {})
    resolver.require_sound()
    assert len(trials) == 2 * len(methods)
    seen = {}
    for trial in trials:
        dataset = load_dataset(trial.job.data, trial.seed)
        plan = make_plan(trial.jobfile, dataset, 1)
        sizes, ids = plan.sizes(), np.arange(len(plan.samples))
        batches = [make_sampler(trial.job, sizes, ids).batch(step)[0].tobytes() for step in range(5)]
        told = [own.tobytes() for own in plan.samples], dataset.split.tobytes(), batches
        assert seen.setdefault(trial.seed, told) == told, trial.name
    assert seen[100] != seen[101]


@pytest.mark.parametrize(("local_steps", "rounds"), [(1, 60), (4, 15), (7, 8)])
def test_a_budget_of_gradient_steps_sets_the_rounds(local_steps, rounds, tmp_path):
    changes = {"budget": {"gradient_steps": 60}, "cells": {"method": {"dsgd": {"method": {"name": "dsgd-task"}}}}}
    study = read_study(write_study(tmp_path, changes, {"train": {"local_steps": local_steps}}))
    assert {trial.job.train.rounds for trial in Resolver(study).cells(lambda *_: {})} == {rounds}


def test_a_budget_of_less_than_a_round_is_refused(tmp_path):
    path = write_study(tmp_path, {"budget": {"gradient_steps": 3}}, {"train": {"local_steps": 4}})
    found = problems(path)
    assert found[0].startswith(f"study:{line_of(path, 'gradient_steps')}: 3 gradient steps are less than one round")


def test_shares_are_disjoint_and_all_there_is():
    trials = list(range(11))
    parts = [Share(number, 4).part(trials) for number in (1, 2, 3, 4)]
    assert sorted(chain(*parts)) == trials
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# -- random search ---------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e4), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_draws_stay_in_their_range_and_are_functions_of_the_seed(low, factor, is_log, seed):
    value = {"log-uniform" if is_log else "uniform": [low, low * factor]}
    drawn = [draw_settings({"k": value}, seed, "d", "m", number)["k"] for number in range(5)]
    assert all(low <= number <= low * factor for number in drawn)
    assert drawn == [draw_settings({"k": value, "other": [1, 2]}, seed, "d", "m", n)["k"] for n in range(5)]


def test_draws_have_the_distribution_that_their_name_says():
    def share_below(kind, middle):
        space = {"k": {kind: [0.01, 1.0]}}
        return np.mean([draw_settings(space, 0, "d", "m", n)["k"] < middle for n in range(2000)])

    assert share_below("log-uniform", 0.1) == pytest.approx(0.5, abs=0.04)
    assert share_below("uniform", 0.505) == pytest.approx(0.5, abs=0.04)
    chosen = [draw_settings({"k": [1, "two", None]}, 0, "d", "m", n)["k"] for n in range(900)]
    assert [chosen.count(value) / 900 for value in (1, "two", None)] == pytest.approx([1 / 3] * 3, abs=0.05)


@pytest.mark.parametrize(
    "value", [[], {}, 3, "x", {"normal": [0, 1]}, {"uniform": [1]}, {"uniform": ["a", "b"]}, {"log-uniform": [0, 1]}]
)
def test_what_can_not_be_drawn_from_is_refused(value):
    with pytest.raises(ValueError, match=r"draw|two numbers|needs"):
        read_draw(value)


def test_every_method_gets_as_many_different_configurations_or_all_there_are(tmp_path):
    space = {**TUNING["space"], "parse": {"method.beta": [0.1, 0.5]}, "local": {"train.optimiser.lr": [0.1, 0.2]}}
    tuning = {**TUNING, "configurations": 6, "seeds": [1, 2], "space": space}
    study = read_study(write_study(tmp_path, {"tuning": tuning}))
    resolver = Resolver(study)
    tried = configurations(study, resolver)
    resolver.require_sound()
    parse, local = tried["digits", "parse"], tried["digits", "local"]
    assert len(parse) == 6
    assert [c.settings for c in local] == [{}, {"train.optimiser.lr": 0.2}]  # 0.1 is what the job has
    assert all(set(c.settings) == {"method.beta", "train.optimiser.lr"} for c in parse[1:])
    for configuration in parse:
        assert [trial.seed for trial in configuration.trials] == [1, 2]
        assert all(trial.job.evaluate.test is False for trial in configuration.trials)
    digests = [c.trials[0].digest for c in parse]
    assert len(set(digests)) == 6


def test_configurations_of_different_length_are_different(tmp_path):
    space = {"all": {"train.rounds": [10, 20, 40, 80]}}
    study = read_study(write_study(tmp_path, {"tuning": {**TUNING, "configurations": 9, "space": space}}))
    tried = configurations(study, Resolver(study))["digits", "local"]
    assert sorted(c.trials[0].job.train.rounds for c in tried) == [2, 10, 20, 40, 80]


def test_an_axis_has_the_last_word_over_what_was_tuned(tmp_path):
    changes = {
        "cells": {"rate": {"own": {}, "fixed": {"train.optimiser.lr": 0.3}}},
        "tuning": {**TUNING, "at": {"rate": "own"}},
    }
    study = read_study(write_study(tmp_path, changes))
    cells = Resolver(study).cells(lambda *_: {"train.optimiser.lr": 0.07})
    assert {(c.levels["rate"], c.job.train.optimiser.lr) for c in cells} == {("own", 0.07), ("fixed", 0.3)}


# -- study.h5 and the ledger -----------------------------------------------------------------------------------------


def made_up(agents=3, samples=5, final=True):
    draw = np.random.default_rng(0)
    close = Final(
        predicted=draw.integers(-1, 4, (agents, 2, samples)).astype(np.int16),
        confidence=draw.random((agents, 2, samples), np.float32),
        label=draw.integers(-1, 4, (2, samples)).astype(np.int16),
        sample=draw.integers(-1, 90, (2, samples)),
        macro_f1=draw.random((agents, 2)),
        calibration_error=draw.random((agents, 2)),
        retrieval=draw.random((1, 4)),
        measure=("recall@1", "recall@5", "recall@10", "map"),
        pair=({"query_agent": "0", "gallery_agent": "2", "query_modality": "a", "gallery_modality": "b"},),
    )
    curve = Curve(np.array([1, 2]), np.array([10, 20]), ("a", "all"), draw.random((2, 2, 2, 2)))
    return Result(
        kind=("a", "b", ""), prediction=("ensemble", "unique"), curve=curve, best_round=1, last_round=2,
        best=draw.random((agents, 2, 2, 2)), last=draw.random((agents, 2, 2, 2)),
        gradient_steps=np.array([2, 2, 2]), payload_bytes=20, seconds=0.5, ranks=1, final=close if final else None,
    )  # fmt: skip


def a_study(**changes):
    cells = (
        Cell("d,parse,1", {"data": "d", "method": "parse"}, 1, "ab", 2, "finished", "", made_up()),
        Cell("d,local,1", {"data": "d", "method": "local"}, 1, "cd", 2, "finished", "", made_up(final=False)),
        Cell("d,parse,2", {"data": "d", "method": "parse"}, 2, "ef", 2, "failed", "exit code 6: naïve\nloss"),
        Cell("d,local,2", {"data": "d", "method": "local"}, 2, "01", 2, "missing"),
    )
    compare = Compare(method="parse", baselines={"plain": ("local",)})
    tried = (Tried({}, (0.5, math.nan)), Tried({"method.beta": 0.25}, (0.5, 0.75)))
    whole = Study(
        "made-up", {"data": ("d",), "method": ("parse", "local")}, (1, 2), compare, cells,
        {("d", "parse"): Choice("k", tried, 1)}, {"time": "now", "study": "a\nb: ü"},
    )  # fmt: skip
    return replace(whole, **changes)


def same(first, second):
    """Whether two dataclasses hold the same, arrays to the bit and with their types."""
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes() and first.shape == second.shape
    if hasattr(first, "__dataclass_fields__"):
        return all(same(getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__)
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    return first == second or (first != first and second != second)


def test_a_study_is_read_as_it_was_written(tmp_path):
    study = a_study()
    studyfile.write_study(tmp_path / "study.h5", study)
    assert same(load_study(tmp_path / "study.h5"), study)
    bare = a_study(compare=None, tuning={}, provenance={}, cells=study.cells[3:])
    studyfile.write_study(tmp_path / "study.h5", bare)
    assert same(load_study(tmp_path / "study.h5"), bare)
    assert [cell.name for cell in study.select(method="parse")] == ["d,parse,1"]


def test_a_study_is_pleasant_to_read_with_plain_h5py(tmp_path):
    study = a_study()
    studyfile.write_study(tmp_path / "study.h5", study)
    with h5py.File(tmp_path / "study.h5") as file:
        method, status = file["levels/method"].asstr()[:], file["cells/status"].asstr()[:]
        (row,) = np.flatnonzero((method == "parse") & (status == "finished"))
        last = file[f"results/{row:05d}/last"]
        assert list(last.attrs["dimensions"]) == ["agent", "split", "weighting", "prediction"]
        np.testing.assert_array_equal(last[:], study.cells[0].result.last)
        assert json.loads(file.attrs["provenance"])["time"] == "now"


@pytest.mark.parametrize("flip", [0.3, 0.6, 0.95])
def test_a_damaged_study_is_refused(flip, tmp_path):
    path = tmp_path / "study.h5"
    studyfile.write_study(path, a_study())
    content = bytearray(path.read_bytes())
    content[int(flip * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged or edited"):
        load_study(path)


def test_the_ledger_only_grows_and_sums_the_seconds_that_led_to_the_last_finish(tmp_path):
    study = read_study(write_study(tmp_path))
    trial = Resolver(study).cells(lambda *_: {})[0]
    ledger = Ledger(tmp_path / "ledger.csv")
    assert ledger.seconds() == {}
    seconds_after = []
    for outcome, seconds in (("finished", 1000.0), ("stopped", 1.5), ("finished", 2.25), ("failed", 8.0)):
        before = ledger.path.read_text() if ledger.path.exists() else ""
        ledger.add("aa", trial, outcome, seconds, 0.125)
        assert ledger.path.read_text().startswith(before)
        seconds_after.append(ledger.seconds()["cell", "digits,parse,100"])
    assert seconds_after == [1000.0, 1000.0, 3.75, 3.75]
    assert ledger.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert len(ledger.path.read_text().splitlines()) == 5
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("kept_bytes", [1, 40, 90])
def test_a_line_of_the_ledger_that_a_full_disk_has_cut_spoils_no_other(kept_bytes, tmp_path):
    study = read_study(write_study(tmp_path))
    trial = Resolver(study).cells(lambda *_: {})[0]
    ledger = Ledger(tmp_path / "ledger.csv")
    ledger.add("aa", trial, "stopped", 1.5)
    whole = ledger.path.read_bytes()
    ledger.add("bb", trial, "finished", 99.0)
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(whole) + kept_bytes])
    ledger.add("cc", trial, "finished", 2.5)
    assert ledger.seconds() == {("cell", "digits,parse,100"): 4.0}
