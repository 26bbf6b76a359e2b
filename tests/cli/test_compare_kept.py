"""parse-mpi compare: what an earlier call, or a study.h5 alone, spares the next one."""

import runpy
import shutil
import sys

import numpy as np
import pytest
from compare_cases import FAILING, LOCAL, TUNING, InProcess, ledger, write_study
from damage import flip
from launch import ROOT

from parse_mpi.cli import main
from parse_mpi.compare.runner import Comparison
from parse_mpi.compare.studyfile import load_study
from parse_mpi.jobfile import load_job

PUBLISHED = runpy.run_path(str(ROOT / "benchmarks" / "published.py"))


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


def test_results_of_another_length_are_not_written_over(tmp_path, started):
    """How long a job trains is no part of its digest."""
    out = tmp_path / "out"
    Comparison(write_study(tmp_path, LOCAL), out, {}).run()
    before = (out / "study.h5").read_bytes()
    ended = Comparison(write_study(tmp_path, LOCAL, {"train": {"rounds": 1}}), out, {}).run()
    assert {cell.rounds for cell in load_study(ended.result).cells} == {1}
    assert ended.aside == out / "study.previous-1.h5"
    assert ended.aside.read_bytes() == before


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
