"""Agents loaded from a run directory predict what the run's own evaluation saw, with nothing but that directory."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from event_cases import PLAIN as EVENTS
from launch import ROOT, child_environment
from small_jobs import finished_run, merged, write_dataset, write_job
from test_nonfinite import FUSE, FUSED, LAST

from parse_mpi import load_agent
from parse_mpi.cli import main
from parse_mpi.data.dataset import TEST, VALIDATION, Dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import DataError, StorageError
from parse_mpi.jobfile import load_job
from parse_mpi.storage.metrics import Metrics, read_metrics

EVERY_ROUND = {"evaluate": {"every": 1}, "checkpoint": {"every": 1, "keep": 100}}
SHORT: dict[str, Any] = {"mode": "exact", "train": {"batch_size": 24, "rounds": 2}}
OF_FILE: dict[str, Any] = {
    "data": {"source": {"hdf5": "set.h5", "reading": "lazy", "split": "file"}},
    "agents": [
        {"modalities": ["b"], "count": 2},
        {"modalities": ["a", "c"], "count": 2},
        {"modalities": ["a", "b", "c"], "count": 2},
    ],
}
JOBS: dict[str, dict[str, Any]] = {
    "events": EVENTS | EVERY_ROUND,
    "local": SHORT | {"method": {"name": "local"}},
    "file, stacked, float64": SHORT | OF_FILE | {"mode": "fast", "dtype": "float64"},
    "gated, adaptive": SHORT | {"method": {"fusion": "gated", "modality_weighting": "adaptive"}},
}


@dataclass(frozen=True)
class Run:
    """A finished run and what it learnt from."""

    out: Path
    job: Path

    @cached_property
    def dataset(self) -> Dataset:
        job = load_job(self.job).job
        return load_dataset(job.data, job.seed)

    @cached_property
    def metrics(self) -> Metrics:
        return read_metrics(self.out)

    def samples(self, modalities: tuple[str, ...], split: int) -> dict[str, np.ndarray]:
        index = self.dataset.indices(split)
        return {m: self.dataset.modalities[m][index] for m in modalities}

    def accuracy(self, done: int, agent: int) -> np.ndarray:
        """Recorded accuracy of its ensemble on validation and test; nan while it was away."""
        (row,) = np.flatnonzero(self.metrics["evaluations/round"] == done)
        return self.metrics["evaluations/accuracy"][row, agent, :, 0, 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    made = {}
    for name, changes in JOBS.items():
        folder = tmp_path_factory.mktemp("run")
        write_dataset(folder / "set.h5")
        job = write_job(folder, changes)
        made[name] = Run(finished_run(job, folder / "run"), job)
    return made


OTHER_METHODS = (
    "centralised", "dmml-kd", "dsgd-hybrid", "dsgd-modality", "dsgd-task", "fedepa", "harmony", "monolithic",
    "sheaf-dmfl",
)  # fmt: skip


def require_same_accuracy(run: Run, agent: int, done: int) -> None:
    module = load_agent(run.out, agent, done)
    for split, recorded in zip((VALIDATION, TEST), run.accuracy(done, agent), strict=True):
        labels = np.array(module.class_names)[run.dataset.labels[run.dataset.indices(split)]]
        made = np.array(module.predict(run.samples(module.modalities, split)))
        assert (made == labels).sum() / len(labels) == recorded


@pytest.mark.parametrize("name", [name for name in JOBS if name != "events"])
def test_agents_of_every_kind_predict_what_the_run_says_of_each_sample(runs: dict[str, Run], name: str) -> None:
    require_same_predictions(runs[name])


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_so_do_those_of_every_method(method: str, tmp_path: Path) -> None:
    kinds = [["top"], ["bottom"], ["top", "bottom"]]
    agents = [{"modalities": modalities, "count": 2} for modalities in kinds]
    job = write_job(tmp_path, SHORT | {"agents": agents, "method": {"name": method}})
    require_same_predictions(Run(finished_run(job, tmp_path / "run"), job))


def require_same_predictions(run: Run) -> None:
    """Of one agent of every kind after the last round, in all and sample by sample."""
    kinds = run.metrics["agents/kind"]
    for agent in np.unique(kinds, return_index=True)[1].tolist():
        require_same_accuracy(run, agent, 2)
        module = load_agent(run.out, agent)
        assert (module.id, module.round, module.kind) == (agent, 2, kinds[agent])
        predicted = run.metrics["final/predicted"][agent, 1]
        made = module(run.samples(module.modalities, TEST)).argmax(-1).numpy()
        np.testing.assert_array_equal(made, predicted[predicted >= 0])


def test_agents_are_what_events_had_made_of_them_by_the_round(runs: dict[str, Run]) -> None:
    """A checkpoint after the round in which an event was due holds what was before it."""
    run = runs["events"]
    expected = {
        **{(1, 6): "top+bottom", (2, 6): "bottom", (8, 6): "bottom", (9, 6): "top+bottom"},
        **{(5, 3): "bottom", (6, 3): "top+bottom", (8, 3): "top", (5, 9): "top+bottom", (2, 0): "top", (9, 0): "top"},
    }
    for (done, agent), kind in expected.items():
        assert load_agent(run.out, agent, done).kind == kind
        require_same_accuracy(run, agent, done)
    for agent in range(10):
        require_same_accuracy(run, agent, 12)


def test_who_is_away_can_not_be_loaded(runs: dict[str, Run]) -> None:
    run = runs["events"]
    assert np.isnan(run.accuracy(3, 0)).all()
    with pytest.raises(StorageError, match=r"agent 0 is away in round 3: .*checkpoints: 1, 2, 3, 4"):
        load_agent(run.out, 0, 3)
    with pytest.raises(StorageError, match="agent 9 is away in round 1"):
        load_agent(run.out, 9, 1)


def test_what_is_not_there_is_named(runs: dict[str, Run], tmp_path: Path) -> None:
    out = runs["local"].out
    with pytest.raises(StorageError, match="there is no agent 10; ids go from 0 to 9"):
        load_agent(out, 10)
    with pytest.raises(StorageError, match="no agent -1"):
        load_agent(out, -1)
    with pytest.raises(StorageError, match="no checkpoint of round 1 is kept; there are 2"):
        load_agent(out, 0, 1)
    with pytest.raises(StorageError, match="holds no run"):
        load_agent(tmp_path, 0)


def test_samples_that_do_not_fit_are_refused_with_what_would(runs: dict[str, Run]) -> None:
    agent = load_agent(runs["local"].out, 6)
    top, bottom = np.zeros((2, 2, 4, 8))
    with pytest.raises(DataError, match=r"agent 6 holds top, bottom; it was given top$"):
        agent({"top": top})
    with pytest.raises(DataError, match="agent 0 holds top; it was given bottom, top"):
        load_agent(runs["local"].out, 0)({"bottom": bottom, "top": top})
    with pytest.raises(DataError, match=r"bottom: \[4, 8\] was given, \[B, 4, 8\] is expected"):
        agent({"top": top, "bottom": bottom[0]})
    with pytest.raises(DataError, match="the numbers of samples differ: top 2, bottom 1"):
        agent({"top": top, "bottom": bottom[:1]})


def test_samples_without_a_value_have_no_class(runs: dict[str, Run]) -> None:
    agent = load_agent(runs["local"].out, 6)
    top, bottom = np.ones((2, 3, 4, 8))
    with pytest.raises(DataError, match="top: no array of numbers: could not convert"):
        agent({"top": "abc", "bottom": bottom})
    for missing in (np.nan, np.inf):
        top[1] = missing
        with pytest.raises(DataError, match="top: sample 1 has a value that is nan"):
            agent.predict({"top": top, "bottom": bottom})


def test_arrays_and_tensors_of_any_precision_give_the_same_logits(runs: dict[str, Run]) -> None:
    run = runs["gated, adaptive"]
    agent, x = load_agent(run.out, 7), run.samples(("top", "bottom"), TEST)
    logits = agent(x)
    assert logits.shape == (len(run.dataset.indices(TEST)), 10)
    assert logits.requires_grad
    for m, values in x.items():
        values.setflags(write=False)  # as arrays of a file that is mapped are
        other = {**x, m: torch.tensor(values)}
        torch.testing.assert_close(agent(other), logits, rtol=0, atol=0)
    wide = {m: values.astype(np.float64) for m, values in reversed(x.items())}
    torch.testing.assert_close(agent(wide), logits, rtol=0, atol=0)


def test_an_agent_is_its_state_and_no_more(runs: dict[str, Run]) -> None:
    """Another agent of the kind with its state predicts the same, through a file as well."""
    run = runs["gated, adaptive"]
    one, other = (load_agent(run.out, agent) for agent in (6, 7))
    x = run.samples(one.modalities, TEST)
    assert not torch.equal(one(x), other(x))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(one(x), other(x))
    for m in one.modalities:
        assert f"standardise.m_{m}.mean" in one.state_dict()


def test_neither_mpi_nor_the_data_are_needed_and_the_package_stays_light(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["file, stacked, float64"]
    out = tmp_path / "elsewhere"
    shutil.copytree(run.out, out)
    x = run.samples(("a", "b", "c"), TEST)
    np.savez(tmp_path / "x.npz", **x)
    text = (out / "job.yaml").read_text()
    (out / "job.yaml").write_text(text.replace(str(run.job.parent), "/nowhere"))
    code = f"""
import sys
sys.modules["mpi4py"] = None
from parse_mpi import load_agent
assert not {{"torch", "numpy", "h5py", "pydantic"}} & set(sys.modules)
import numpy as np
print(*load_agent({str(out)!r}, 5).predict(dict(np.load({str(tmp_path / "x.npz")!r}))))
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == load_agent(run.out, 5).predict(x)


def test_the_three_lines_of_the_readme(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["local"]
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    command = [sys.executable, "-c", code.replace('"runs/quickstart", 25', f"{str(run.out)!r}, 8")]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), cwd=tmp_path, timeout=60)
    first = {m: values[:8] for m, values in run.dataset.modalities.items()}
    assert (done.stdout, done.stderr) == (f"{load_agent(run.out, 8).predict(first)}\n", "")


# -- what may be wrong with a run -------------------------------------------------------------------------------------


def test_a_run_of_an_earlier_version_says_what_to_do_and_that_helps(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="an earlier version began this run"):
        load_agent(ROOT / "tests" / "format_1" / "run", 0)
    job, out = write_job(tmp_path, SHORT), tmp_path / "run"
    run = Run(finished_run(job, out), job)
    (out / "metrics" / "table-scaling.h5").unlink()
    with pytest.raises(StorageError, match=r"--set train\.rounds"):
        load_agent(out, 0)
    finished_run(job, out, "train.rounds=3")
    require_same_accuracy(run, 0, 3)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    job, out = write_job(tmp_path, SHORT | EVERY_ROUND), tmp_path / "run"
    run = Run(finished_run(job, out), job)
    shard = out / "checkpoints" / "round-000002" / "shard-0000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="round-000002 is not used: .*has .* bytes"):
        assert load_agent(out, 0).round == 1
    with pytest.raises(StorageError, match="the manifest says"):
        load_agent(out, 0, 2)
    require_same_accuracy(run, 0, 1)
    for manifest in out.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    with pytest.raises(StorageError, match=r"none of its checkpoints can be trusted:\n  round-000002 is not used: "):
        load_agent(out, 0)


def test_who_was_cut_off_is_loaded_as_it_was_before_and_own_encoders_need_their_file(tmp_path: Path) -> None:
    (tmp_path / "fuse.py").write_text(FUSE)
    job = write_job(tmp_path, merged(FUSED, EVERY_ROUND | {"train": {"on_nonfinite": "isolate", "rounds": LAST + 1}}))
    run = Run(finished_run(job, tmp_path / "run"), job)
    require_same_accuracy(run, 0, LAST - 1)
    require_same_accuracy(run, 1, LAST + 1)
    with pytest.raises(StorageError, match=f"agent 0 is away in round {LAST + 1}"):
        load_agent(run.out, 0)
    (tmp_path / "fuse.py").write_text(FUSE.replace("-0.65", "-0.66"))
    with pytest.raises(StorageError, match=r"own encoder has changed since"):
        load_agent(run.out, 1)
    (tmp_path / "fuse.py").rename(tmp_path / "moved.py")
    done = subprocess.run(
        [sys.executable, "-m", "parse_mpi", "predict", str(run.out), "--agent", "1"],
        capture_output=True, text=True, env=child_environment(), cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == StorageError.exit_code
    assert "fuse.py can't be imported" in done.stderr
    assert "put their file back as it was" in done.stderr


# -- parse-mpi predict ------------------------------------------------------------------------------------------------


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_predict_writes_what_the_agent_says_of_the_runs_own_data(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["local"]
    assert main(["predict", str(run.out), "--agent", "8", "--split", "validation"]) == 0
    text, told = capsys.readouterr()
    rows, index = table(text), run.dataset.indices(VALIDATION)
    agent = load_agent(run.out, 8)
    x = run.samples(agent.modalities, VALIDATION)
    assert [int(row["sample"]) for row in rows] == index.tolist()
    assert [row["predicted"] for row in rows] == agent.predict(x)
    assert [row["label"] for row in rows] == [run.dataset.class_names[y] for y in run.dataset.labels[index]]
    confidence = agent(x).softmax(-1).max(-1).values.detach().numpy()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], confidence, rtol=1e-5)
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert told == (
        f"agent 8 (top+bottom) after round 2: {len(rows)} validation samples of digits, {right} of them right "
        f"(accuracy {run.accuracy(2, 8)[0]:.4f})\n"
    )


def test_predict_reads_another_file_of_the_layout(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with more modalities, and some of the classes; into a file."""
    run, data, out = runs["file, stacked, float64"], tmp_path / "new.h5", tmp_path / "made.csv"
    write_dataset(data, {"a": (6,), "b": (3, 4), "c": (5,), "d": (2,)}, count=300)
    arguments = ["predict", str(run.out), "--agent", "3", "--data", str(data)]
    assert main([*arguments, "--csv", str(out), "--round", "2"]) == 0
    assert capsys.readouterr().out.startswith("agent 3 (a+c) after round 2: 60 test samples of new, ")
    with h5py.File(data) as file:
        index = np.flatnonzero(file["split"][()] == TEST)
        x = {m: file[f"modalities/{m}"][()][index] for m in ("a", "c")}
    rows = table(out.read_bytes().decode())
    assert [row["predicted"] for row in rows] == load_agent(run.out, 3).predict(x)
    assert [int(row["sample"]) for row in rows] == index.tolist()

    with h5py.File(data, "r+") as file:
        file.attrs["class_names"] = ["0", "1", "two", "3"]
    assert main(arguments) == DataError.exit_code
    assert "has classes that agent 3 does not know: two. It knows 0, 1, 2, 3" in capsys.readouterr().err
    with h5py.File(data, "r+") as file:
        del file["modalities/c"]
    assert main(arguments) == DataError.exit_code
    assert "new has no modality c; agent 3 holds a, c" in capsys.readouterr().err
