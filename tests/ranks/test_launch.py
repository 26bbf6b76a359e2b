"""Launches of `parse-mpi run` that go wrong or are stopped: seen from outside, on several ranks."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launch import child_environment, run
from small_jobs import write_job

from parse_mpi.cli import main
from parse_mpi.exchange.world import expected_size
from parse_mpi.run.preemption import SIGNALS
from parse_mpi.run.provenance import add_launch

PARSE_MPI = [sys.executable, "-m", "parse_mpi"]

BREAK_RANK_1 = """
import sys, time
from mpi4py import MPI
from parse_mpi.agents.group import AgentGroup
from parse_mpi.cli import main

def broken(group, poll):
    if MPI.COMM_WORLD.rank == 1 and group.steps == 3:
        print(f"raised at {time.time()}", flush=True)
        raise ZeroDivisionError("planted")
    return local_step(group, poll)

local_step, AgentGroup.local_step = AgentGroup.local_step, broken
sys.exit(main())
"""
MISSING_ON_RANK_1 = """
import os
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["MISSING"]:
            raise ImportError("planted: no " + name)

if "1" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK"), os.environ.get("PMIX_RANK")):
    sys.meta_path.insert(0, Missing())
"""
A_JOB_PER_RANK = """
import sys
from mpi4py import MPI
from parse_mpi.cli import main

sys.exit(main(["run", sys.argv[1 + MPI.COMM_WORLD.rank], "--out", sys.argv[3]]))
"""


@pytest.fixture
def signals_as_they_were() -> Iterator[None]:
    """A run in this process listens to signals; the tests after it must not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_exception_on_one_rank_ends_all(tmp_path: Path) -> None:
    """The other rank waits in an exchange that never completes; rank 1's traceback is what is left to read."""
    job = write_job(tmp_path)
    command = [sys.executable, "-c", BREAK_RANK_1, "run", str(job), "--out", str(tmp_path / "run")]
    outcome = run(2, command, tmp_path / "logs", limit_s=90)
    assert outcome.code == 1, outcome
    raised = re.search(r"raised at ([0-9.]+)", outcome.logs[1])
    assert raised, outcome
    assert time.time() - float(raised[1]) < 10
    assert "rank 1: Traceback" in outcome.logs[1]
    assert "ZeroDivisionError: planted" in outcome.logs[1]
    assert "Traceback" not in outcome.logs[0]


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_an_import_that_fails_on_one_rank_ends_all(tmp_path: Path, module: str) -> None:
    """The other rank has joined MPI and waits; a rank that just left would wait for it in MPI_Finalize."""
    (tmp_path / "sitecustomize.py").write_text(MISSING_ON_RANK_1)
    job = write_job(tmp_path)
    paths = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])
    command = [*PARSE_MPI, "run", str(job), "--out", str(tmp_path / "run")]
    outcome = run(2, command, tmp_path / "logs", limit_s=60, environment={"PYTHONPATH": paths, "MISSING": module})
    assert not outcome.timed_out, outcome
    assert outcome.code == 1, outcome
    assert "rank 1: Traceback" in outcome.logs[1]
    assert f"planted: no {module}" in outcome.logs[1]


@pytest.mark.parametrize("broken", ["{", "just text", "- {time: 2026-99-99}", "\\xff"])
def test_a_broken_provenance_is_kept_and_does_not_stop_the_run(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "provenance.yaml"
    content = broken.encode("latin-1").replace(b"\\xff", b"\xff")
    for kept in ("provenance.yaml.broken", "provenance.yaml.broken-2"):
        path.write_bytes(content)
        add_launch(path, ["parse-mpi", "run"], [], first_round=3, seed=0)
        assert (tmp_path / kept).read_bytes() == content
        (launch,) = yaml.safe_load(path.read_text())
        assert launch["first_round"] == 3
    add_launch(path, ["parse-mpi", "run"], [], first_round=5, seed=0)
    assert [launch["first_round"] for launch in yaml.safe_load(path.read_text())] == [3, 5]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.usefixtures("signals_as_they_were")
@pytest.mark.parametrize(
    "variables",
    [
        {"PMI_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMIX_SIZE": "4"},
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
    ],
    ids=lambda variables: next(reversed(variables)),
)
def test_a_world_smaller_than_the_launch_is_refused(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="4"):
        main(["run", str(write_job(tmp_path)), "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert f"the launcher started 4 ranks ({next(reversed(variables))}=4), but MPI sees a world of 1" in said
    assert ("srun --mpi=pm" if "SLURM_STEP_ID" in variables else "Use the mpiexec of this environment") in said
    assert not (tmp_path / "run").exists()


def test_the_most_specific_launcher_counts() -> None:
    """Ranks of Open MPI inherit what srun told the daemons that started them."""
    inherited = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "2"}
    assert expected_size(inherited | {"OMPI_COMM_WORLD_SIZE": "8"}) == ("OMPI_COMM_WORLD_SIZE", 8)
    assert expected_size(inherited) == ("PMI_SIZE", 2)
    assert expected_size({"PMI_SIZE": "", "SLURM_STEP_NUM_TASKS": "2"}) is None


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_batch_script_without_srun_is_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside sbatch the number of tasks is set, but this process was not started as one of them."""
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(SystemExit, match="2"):  # a world of 1 is accepted; the job file is what is missing
        main(["run", str(tmp_path / "nothing.yaml"), "--out", str(tmp_path / "run")])


def test_ranks_that_the_library_does_not_join_are_refused(tmp_path: Path) -> None:
    """Ranks whose MPI does not find the launcher, as with a launcher of another MPI: each is a world of its own."""
    lonely = (
        "import os, sys\n"
        "lost = [n for n in os.environ if n.startswith(('PMI_FD', 'PMIX_', 'OMPI_MCA', 'PRTE_'))]\n"
        "for name in lost: del os.environ[name]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'parse_mpi', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", lonely, "run", str(write_job(tmp_path)), "--out", str(tmp_path / "run")]
    outcome = run(2, command, tmp_path / "logs", limit_s=90)
    assert outcome.code == 4, outcome
    said = "".join(outcome.logs)
    assert re.search(r"the launcher started 2 ranks \(\w+=2\), but MPI sees a world of 1", said), outcome
    assert not (tmp_path / "run").exists()


def test_two_jobs_in_one_launch_are_refused(tmp_path: Path) -> None:
    jobs = []
    for name, lr in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        jobs.append(str(write_job(tmp_path / name, {"train": {"optimiser": {"name": "sgd", "lr": lr}}})))
    command = [sys.executable, "-c", A_JOB_PER_RANK, *jobs, str(tmp_path / "run")]
    outcome = run(2, command, tmp_path / "logs", limit_s=90)
    assert outcome.code == 4, outcome
    assert "error: ranks disagree about job and data" in outcome.logs[0]
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_agents_is_refused(tmp_path: Path) -> None:
    job = write_job(tmp_path, {"agents": [{"modalities": ["top"], "count": 1}]})
    outcome = run(2, [*PARSE_MPI, "run", str(job), "--out", str(tmp_path / "run")], tmp_path / "logs", limit_s=90)
    assert outcome.code == 2, outcome
    assert len(re.findall("2 ranks can't share 1 agents?: every rank hosts at least one", outcome.logs[0])) == 1
    assert not (tmp_path / "run").exists()
