"""parse-mpi scaling: what is launched, what is kept, and that results are those of the runs."""

import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from compare_cases import InProcess
from launch import ROOT, child_environment, run
from scaling_cases import write_scaling_study

from parse_mpi.cli import main
from parse_mpi.scaling.runner import ScalingStudy
from parse_mpi.scaling.scalingfile import EVERY_ROUND, load_scaling
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.storage.owner import look
from parse_mpi.storage.rundir import RunDirectory

GROUP = {"curves": {"strong": None, "group": {"kind": "group", "agents": [3, 6]}}, "repeats": 2}


def test_one_and_two_ranks_are_measured(tmp_path):
    """With mpiexec, from the command line: everything collected is what the runs recorded, warm-up left out."""
    study, out = write_scaling_study(tmp_path, {"settings": {"evaluate.every": 3}}), tmp_path / "out"
    command = [sys.executable, "-m", "parse_mpi", "scaling", str(study), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    scaling = load_scaling(out / "scaling.h5")
    assert [(launch.ranks, launch.status) for launch in scaling.launches] == [(1, "finished"), (2, "finished")]
    for launch, name in zip(scaling.launches, ("strong,1r,1n,3a,0", "strong,2r,1n,3a,0"), strict=True):
        metrics, result = read_metrics(out / "points" / name), launch.result
        assert result.round.tolist() == [2, 3]
        assert result.seconds.shape[1] == launch.ranks
        np.testing.assert_array_equal(result.seconds, metrics["ranks/seconds"][1:])
        np.testing.assert_array_equal(result.travel_seconds, metrics["ranks/travel_seconds"][1:])
        np.testing.assert_array_equal(result.sent_bytes, metrics["ranks/sent_bytes"][1:].sum(2))
        np.testing.assert_array_equal(result.peak_bytes, metrics["ending/peak_bytes"])
        every_round = [result.phase.index(phase) for phase in EVERY_ROUND]
        np.testing.assert_allclose(result.round_seconds(), metrics["ranks/seconds"][1:, :, every_round].sum(2).max(1))
        loads = result.loads
        assert loads.agents.sum() == 3
        np.testing.assert_array_equal(loads.bytes_within, result.sent_bytes.mean(0))
        assert loads.bytes_between.sum() == 0
    text = (out / "scaling.md").read_text()
    for head in ("strong (strong scaling)", "where the time goes", "Cost model", "against measurements"):
        assert head in text
    assert (out / "strong.png").stat().st_size > 10_000
    assert (out / "costmodel.png").stat().st_size > 10_000


def test_finished_points_are_kept_and_the_others_are_left_to_whoever_runs_them(tmp_path, started, capsys):
    study, out = write_scaling_study(tmp_path, GROUP), tmp_path / "out"
    assert main(["scaling", str(study), "--out", str(out), "--plan"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(commands) == 4
    assert started == []
    words = shlex.split(commands[1])  # by hand, as in an allocation
    InProcess([sys.executable, "-m", *["parse_mpi", *words[1:]]], 1, 1, 60, out / "logs" / "by-hand.log")
    assert main(["scaling", str(study), "--out", str(out), "--report"]) == 0
    assert "3 runs left" in capsys.readouterr().out
    launches = load_scaling(out / "scaling.h5").launches
    assert [launch.status for launch in launches] == ["missing", "finished", "missing", "missing"]
    assert launches[1].agents == 6
    assert main(["scaling", str(study), "--out", str(out)]) == 0
    assert len(started) == 4
    names = [command[command.index("--out") + 1].rpartition("/")[2] for command in started]
    assert names == ["group,1r,1n,6a,0", "group,1r,1n,3a,0", "group,1r,1n,3a,1", "group,1r,1n,6a,1"]
    assert main(["scaling", str(study), "--out", str(out)]) == 0
    assert len(started) == 4
    capsys.readouterr()
    assert main(["report", str(out)]) == 0  # from scaling.h5 alone
    assert str(out / "scaling.md") in capsys.readouterr().out


def test_slurm_points_are_told_and_collected_once_they_are_there(tmp_path, started, capsys):
    changes = {**GROUP, "launch": {"by": "slurm"}, "repeats": 1}
    study, out = write_scaling_study(tmp_path, changes), tmp_path / "out"
    assert main(["scaling", str(study), "--out", str(out)]) == 75
    assert started == []
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith("#"):
            InProcess([sys.executable, "-m", "parse_mpi", *shlex.split(line)[1:]], 1, 1, 60, out / "logs" / "hand.log")
    assert main(["scaling", str(study), "--out", str(out)]) == 0
    assert {launch.status for launch in load_scaling(out / "scaling.h5").launches} == {"finished"}
    first, *_ = sorted((out / "points").iterdir())
    (first / "state.json").write_text("{")
    assert main(["scaling", str(study), "--out", str(out), "--report"]) == 7
    assert f"{first.name}: {first / 'state.json'}" in capsys.readouterr().err
    assert [launch.status for launch in load_scaling(out / "scaling.h5").launches].count("failed") == 1


def test_a_run_that_was_stopped_warms_up_again(tmp_path, started):
    study, out = write_scaling_study(tmp_path, {**GROUP, "rounds": 5, "repeats": 1}), tmp_path / "out"
    scaling = ScalingStudy(study, out)
    words = scaling.command(scaling.points[0])[1:]
    InProcess([sys.executable, "-m", "parse_mpi", *words, "--stop-after", "3"], 1, 1, 60, out / "logs" / "first.log")
    assert scaling.run().open == 0
    first, second = load_scaling(out / "scaling.h5").launches
    assert first.result.round.tolist() == [2, 3, 5, 6]
    assert second.result.round.tolist() == [2, 3, 4, 5, 6]


def test_failures_are_told_and_stop_no_other(tmp_path, started, capsys):
    study, out = write_scaling_study(tmp_path, {**GROUP, "repeats": 1}), tmp_path / "out"
    scaling = ScalingStudy(study, out)
    broken = out / scaling.points[0].trial.folder
    broken.mkdir(parents=True)
    (broken / "job.yaml").mkdir()
    assert main(["scaling", str(study), "--out", str(out)]) == 7
    assert "1 failure; the same command tries again:\n  group,1r,1n,3a,0: " in capsys.readouterr().err
    assert [launch.status for launch in load_scaling(out / "scaling.h5").launches] == ["failed", "finished"]
    assert "Points that failed" in (out / "scaling.md").read_text()


def test_a_run_on_other_ranks_is_no_measurement_of_the_point(tmp_path, started, capsys):
    changes = {"curves": {"strong": {"ranks": [2]}}}
    study, out = write_scaling_study(tmp_path, changes), tmp_path / "out"
    scaling = ScalingStudy(study, out)
    words = scaling.command(scaling.points[0])[1:]
    InProcess([sys.executable, "-m", "parse_mpi", *words], 1, 1, 60, out / "logs" / "alone.log")
    assert main(["scaling", str(study), "--out", str(out), "--report"]) == 7
    assert "ran on 1 ranks, not 2; remove it to run it anew" in capsys.readouterr().err


def test_a_run_on_fewer_nodes_is_no_measurement_of_the_point(tmp_path, started, capsys):
    spread = {"strong": {"ranks": [2], "ranks_per_node": 1}}
    study, out = write_scaling_study(tmp_path, {"curves": spread}), tmp_path / "out"
    words = ScalingStudy(study, out).command(ScalingStudy(study, out).points[0])
    done = run(2, [sys.executable, "-m", "parse_mpi", *words[1:]], tmp_path / "logs", limit_s=120)
    assert done.code == 0, done
    assert main(["scaling", str(study), "--out", str(out), "--report"]) == 7
    assert "ran on 1 node, not 2; remove it, and tell mpiexec hosts" in capsys.readouterr().err


def test_a_sigterm_ends_the_launch_and_the_same_command_goes_on(tmp_path):
    changes = {"rounds": 100_000, "curves": {"strong": {"ranks": [2]}}}
    study, out = write_scaling_study(tmp_path, changes, {"evaluate": {"every": 10**6}}), tmp_path / "out"
    command = [sys.executable, "-m", "parse_mpi", "scaling", str(study), "--out", str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    point = RunDirectory(out / "points" / "strong,2r,1n,3a,0")
    until = time.monotonic() + 90
    while not ((state := point.read_state()) and state.round):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.05)
    pid = look(point).record.pid
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 75
    assert "the same command goes on" in said
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    stopped = point.read_state()
    assert stopped.status == "stopped"
    job = f"{tmp_path / 'job.yaml'}"
    rounds = ["--set", f"train.rounds={stopped.round + 2}"]
    again = run(
        2, [sys.executable, "-m", "parse_mpi", "run", job, "--out", str(point.path), *rounds], tmp_path / "logs"
    )
    assert again.code == 0, again
    assert point.read_state().round == stopped.round + 2
