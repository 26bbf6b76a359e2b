"""Real Slurm on virtual nodes: submitted, preempted, requeued, cancelled, killed, and launched with the wrong --mpi."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from cluster import Cluster, missing
from small_jobs import finished_run, write_job

from parse_mpi.cli import main
from parse_mpi.compare.studyfile import load_study
from parse_mpi.scaling.scalingfile import load_scaling
from parse_mpi.storage.metrics import read_metrics

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()} (slurm-wlm, munge)")

NODES, CORES, REST_S = 3, 2, 3.0
requeued_at: dict[tuple[str, str], float] = {}  # job and restart -> when it was seen waiting first
SITE = {
    "mpi": "pmi2",
    "node": {"cores": CORES, "numa_domains": 2},
    "bind": {"cpu": ""},
    "time": "10:00",
    "signal_s": 60,
}
# Fast rounds, so that many pass between two looks at the log, and more of them than a test waits for.
ENDLESS = {"train": {"rounds": 100_000}, "evaluate": {"every": 100}, "checkpoint": {"every": 20}, "mode": "exact"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm"), NODES, CORES) as made:
        yield made


def submitted(cluster: Cluster, folder: Path, file: Path, *options: str, **site: object) -> str:
    """The number of a job that `parse-mpi sbatch` has submitted, with this environment on its PATH."""
    (folder / "site.yaml").write_text(yaml.safe_dump(SITE | site))
    command = [sys.executable, "-m", "parse_mpi", "sbatch", file, *options, "--submit", "--site", folder / "site.yaml"]
    told = cluster.run(*command)
    return re.match(r"submitted job (\d+);", told)[1]


def parse_mpi(cluster: Cluster, *arguments: str | Path) -> str:
    return cluster.run(sys.executable, "-m", "parse_mpi", *arguments)


def is_completed(cluster: Cluster, number: str) -> bool:
    """Whether a job has ended well; one that was requeued, and would wait for two minutes, is told to start.

    Not at once: a node refuses a job that starts within the second in which it was killed.
    """
    job = cluster.job(number)
    if job["JobState"] == "PENDING" and job["Restarts"] != "0":
        since = requeued_at.setdefault((number, job["Restarts"]), time.monotonic())
        if time.monotonic() - since > REST_S:
            with suppress(AssertionError):  # it has just started
                cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
    return job["JobState"] == "COMPLETED"


def rounds_done(run: Path) -> int:
    """By the newest checkpoint."""
    return max((int(path.name[6:]) for path in (run / "checkpoints").glob("round-*")), default=0)


def is_training(log: Path) -> bool:
    """Whether a first evaluation was told."""
    return log.exists() and re.search(r"round +\d+/", log.read_text()) is not None


def ranks_of(run: Path) -> list[int]:
    """Processes that train into a run directory on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"run" in words and str(run).encode() in words and b"python" in words[0]:
            found.append(int(folder.name))
    return found


def test_a_preempted_job_is_requeued_and_ends_as_if_nothing_had_happened(cluster: Cluster, tmp_path: Path) -> None:
    """Two nodes, two ranks on each: USR1, a checkpoint, exit 0, requeued, resumed, finished with the same bits."""
    rounds = 400
    job, run = write_job(tmp_path, ENDLESS | {"train": {"rounds": rounds}}), tmp_path / "run"
    number = submitted(cluster, tmp_path, job, "--out", str(run), "--nodes", "2")
    log = Path(f"{run}.slurm-{number}.log")
    cluster.wait_for("a checkpoint", lambda: rounds_done(run) > 0)
    cluster.run("scancel", "--signal=USR1", number)
    cluster.wait_for("the requeue", lambda: cluster.job(number)["Restarts"] == "1")
    stopped_at = rounds_done(run)
    assert 0 < stopped_at < rounds, "it had finished before it was told to stop"
    cluster.wait_for("the end", lambda: is_completed(cluster, number))
    text = log.read_text()
    assert f"stopped at round {stopped_at} of {rounds}: SIGUSR1 on rank" in text  # both launches wrote into one log
    assert f"resuming after round {stopped_at}" in text
    restarts = read_metrics(run)["ranks/slurm_restarts"]
    np.testing.assert_array_equal(restarts, np.repeat([0, 1], [stopped_at, rounds - stopped_at]))
    launches = yaml.safe_load((run / "provenance.yaml").read_text())
    assert [launch["slurm_restarts"] for launch in launches] == [0, 1]
    assert {launch["slurm_job"] for launch in launches} == {number}
    seats = launches[0]["ranks"]
    assert [(seat["local_rank"], seat["slurm_local_rank"]) for seat in seats] == [(0, 0), (1, 1), (0, 0), (1, 1)]

    alone = finished_run(job, tmp_path / "undisturbed")
    accuracy = "evaluations/accuracy"
    np.testing.assert_array_equal(read_metrics(run)[accuracy][-1], read_metrics(alone)[accuracy][-1])
    assert final_rows(run) == final_rows(alone)


def final_rows(run: Path) -> dict[tuple[str, int], bytes]:
    """Parameters after the last round, by slice and agent."""
    found = {}
    (newest,) = sorted((run / "checkpoints").glob("round-*"))[-1:]
    for shard in newest.glob("shard-*.h5"):
        with h5py.File(shard) as file:
            for name in file["slices"]:
                ids, rows = file[f"slices/{name}/agents"][:], file[f"slices/{name}/parameters"][:]
                found |= {(name, int(agent)): row.tobytes() for agent, row in zip(ids, rows, strict=True)}
    assert found
    return found


def test_an_array_shares_a_study_and_a_task_that_is_told_to_stop_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    write_job(tmp_path, {"train": {"rounds": 60}, "checkpoint": {"every": 20}})
    study, out = tmp_path / "study.yaml", tmp_path / "study"
    study.write_text(
        yaml.safe_dump(
            {
                "name": "shared",
                "cells": {
                    "data": {"digits": {"job": "job.yaml"}},
                    "method": {"parse": {"method.name": "parse"}, "local": {"method": {"name": "local"}}},
                },
                "seeds": [1, 2],
            }
        )
    )
    array = submitted(cluster, tmp_path, study, "--out", str(out), "--array", "1-2", mpi="none")
    cluster.wait_for("a cell", lambda: list((out / "cells").glob("*/checkpoints")))
    first, second = tasks = [f"{array}_1", f"{array}_2"]
    cluster.run("scancel", "--signal=USR1", first)
    cluster.wait_for("both tasks to end", lambda: all(is_completed(cluster, task) for task in tasks))
    logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert (cluster.job(first)["Restarts"], cluster.job(second)["Restarts"]) == ("1", "0"), logs
    parse_mpi(cluster, "compare", study, "--out", out)
    assert len([cell for cell in load_study(out / "study.h5").cells if cell.status == "finished"]) == 4


def test_every_point_of_a_scaling_study_is_measured_in_a_job_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    write_job(tmp_path)
    study, out = tmp_path / "scaling.yaml", tmp_path / "scaling"
    curve = {"kind": "strong", "ranks": [1, 2]}
    spec = {"name": "scaled", "job": "job.yaml", "curves": {"strong": curve}, "rounds": 4, "warm_up": 2, "repeats": 1}
    study.write_text(yaml.safe_dump(spec))
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    told = parse_mpi(cluster, "sbatch", study, "--out", out, "--site", tmp_path / "site.yaml", "--submit")
    numbers = re.findall(r"submitted job (\d+)", told)
    assert len(numbers) == 2
    cluster.wait_for("both points", lambda: all(is_completed(cluster, number) for number in numbers))
    parse_mpi(cluster, "scaling", study, "--out", out, "--report")
    launches = load_scaling(out / "scaling.h5").launches
    assert [(launch.ranks, launch.status) for launch in launches] == [(1, "finished"), (2, "finished")]


def test_a_killed_rank_ends_the_step_and_a_job_that_gets_no_further_is_given_up(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Without -K1 the other ranks would wait until the time limit."""
    job, run = write_job(tmp_path, ENDLESS | {"checkpoint": {"every": 100_000}}), tmp_path / "run"
    number = submitted(cluster, tmp_path, job, "--out", str(run), "--nodes", "2", restarts=1)
    log = Path(f"{run}.slurm-{number}.log")
    cluster.wait_for("training", lambda: is_training(log))
    os.kill(ranks_of(run)[-1], signal.SIGKILL)
    killed = time.monotonic()
    cluster.wait_for("the end of the step", lambda: cluster.job(number)["JobState"] == "FAILED", 60)
    assert time.monotonic() - killed < 30
    assert not ranks_of(run)
    assert "no launch got past round 0, 1 in a row: not worth another" in log.read_text()
    assert cluster.job(number)["Restarts"] == "0"
    assert cluster.job(number)["ExitCode"] == "4:0"


def test_a_cancelled_job_leaves_a_sound_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    job, run = write_job(tmp_path, ENDLESS | {"checkpoint": {"every": 100_000}}), tmp_path / "run"
    number = submitted(cluster, tmp_path, job, "--out", str(run), "--nodes", "2")
    log = Path(f"{run}.slurm-{number}.log")
    cluster.wait_for("training", lambda: is_training(log))
    cluster.run("scancel", number)
    cluster.wait_for("the end", lambda: not ranks_of(run) and cluster.job(number)["JobState"] == "CANCELLED")
    assert rounds_done(run) > 0, log.read_text()
    assert main(["verify", str(run)]) == 0
    assert main(["status", str(run)]) == 75


def test_the_doctor_sees_nodes_and_a_wrong_mpi(cluster: Cluster, tmp_path: Path) -> None:
    srun, doctor = ("srun", "-K1", "--nodes=2", "--ntasks=4"), (sys.executable, "-m", "parse_mpi", "doctor")
    told = cluster.run(*srun, "--mpi=pmi2", *doctor)
    assert "started 4 ranks (PMI_SIZE), and MPI joined them" in told
    assert "FAIL" not in told
    with pytest.raises(AssertionError, match="MPI sees a world of 1"):
        cluster.run(*srun, "--mpi=none", *doctor)


def test_worlds_of_one_rank_are_caught_with_what_mends_them(cluster: Cluster, tmp_path: Path) -> None:
    """srun starts four tasks, and MPI, which does not hear of it, makes each a world of its own."""
    job, run = write_job(tmp_path, ENDLESS), tmp_path / "run"
    number = submitted(cluster, tmp_path, job, "--out", str(run), "--nodes", "2", mpi="none")
    log = Path(f"{run}.slurm-{number}.log")
    cluster.wait_for("the end", lambda: cluster.job(number)["JobState"] == "FAILED")
    text = log.read_text()
    assert "the launcher started 4 ranks (SLURM_STEP_NUM_TASKS=4), but MPI sees a world of 1" in text
    assert re.search(r"This library speaks (pmi2|pmix)\. Use srun --mpi=\1", text)
    assert not run.exists()
    assert cluster.job(number)["Restarts"] == "0"
