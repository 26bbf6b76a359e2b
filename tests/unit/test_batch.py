"""Batch scripts: what they ask for, how they quote, what is refused, and when a job is given up."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_jobs import write_job

from parse_mpi.batch.script import allocation, study_script, train_script
from parse_mpi.batch.site import Site, find_site, read_site, shipped
from parse_mpi.batch.submit import submit, what_is
from parse_mpi.cli import main
from parse_mpi.errors import JobError, LaunchError
from parse_mpi.storage.restarts import count_ended_launch
from parse_mpi.storage.rundir import RunDirectory, RunState

GPUS = {
    "partition": "gpu", "account": "p1", "directives": ["--constraint=a100"], "mpi": "pmix",
    "setup": ["module load openmpi", ". $HOME/it's/bin/activate"], "environment": {"UCX_TLS": "rc,sm"},
    "node": {"cores": 64, "gpus": 4, "nics": ["mlx5_0", "mlx5_1"]}, "bind": {"memory": "local"},
    "srun": ["--distribution=block:block"], "time": "4:00:00", "signal_s": 300, "restarts": 5,
}  # fmt: skip


def site_of(values) -> Site:
    return Site.model_validate_json(json.dumps(values), strict=True)


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def run_with_stand_ins(script, folder, environment=None):
    """Runs a script with srun, parse-mpi and scontrol that tell how they were called; returns what they told.

    `parse-mpi status` ends with $STANDING, srun runs its command as rank 1 of a node and ends with $CODE.
    """
    stand_ins = {
        "srun": 'printf "srun"; printf " <%s>" "$@"; echo; while [[ $1 == -* ]]; do shift; done; '
        'SLURM_LOCALID=1 "$@"; exit ${CODE:-0}',
        "parse-mpi": 'printf "parse-mpi"; printf " <%s>" "$@"; echo " nic=$UCX_NET_DEVICES"; '
        "[[ $1 == status ]] && exit ${STANDING:-0}; exit ${CODE:-0}",
        "scontrol": 'echo scontrol "$@"',
    }
    for name, body in stand_ins.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    lines = [line for line in script.splitlines() if not line.startswith("export PATH=")]
    done = subprocess.run(
        ["bash"], input="\n".join(lines), text=True, capture_output=True, check=False,
        env={"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
             "SLURM_ARRAY_TASK_COUNT": "20", **(environment or {})},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_a_script_asks_for_what_the_site_has(tmp_path):
    site = site_of(GPUS)
    script = train_script(site, allocation(site, 2, None, None), Path("job.yaml"), "digits", str(tmp_path / "run"), [])
    assert directives(script) == [
        "--job-name=digits", "--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=16", "--gpus-per-node=4",
        "--time=4:00:00", "--partition=gpu", "--account=p1", f"--output={tmp_path}/run.slurm-%j.log",
        "--open-mode=append", "--requeue", "--signal=USR1@300", "--constraint=a100",
    ]  # fmt: skip
    for line in ("module load openmpi", "export OMP_NUM_THREADS=16", "export UCX_TLS=rc,sm", "restarts=5"):
        assert line in script.splitlines()
    gres = site_of({**GPUS, "node": {**GPUS["node"], "gpu_option": "gres=gpu"}})
    assert "--gres=gpu:4" in directives(study_script(gres, allocation(gres, 1, 1, "5", "1-3"), Path("s"), "s", "out"))


def test_ranks_are_one_for_each_gpu_else_for_each_numa_domain(tmp_path):
    assert allocation(site_of(GPUS), 3, None, None).ranks == 12
    assert allocation(site_of({"node": {"cores": 64, "numa_domains": 8}}), 2, None, None).ranks == 16
    assert allocation(Site(), 2, None, None).ranks == 2
    with pytest.raises(JobError, match="8 ranks on 4 GPUs"):
        allocation(site_of(GPUS), 1, 8, None)
    with pytest.raises(JobError, match=r"(?s)2 ranks on 1 core.*node\.cores"):
        allocation(Site(), 1, 2, None)
    with pytest.raises(JobError, match=r"'1\.\.4' is no array"):
        allocation(Site(), 1, None, None, "1..4")


def test_a_script_trains_and_asks_whether_to_go_on(tmp_path):
    """Words with quotes and blanks reach the command as they are, and an index of the array in their middle."""
    site = site_of({**GPUS, "setup": ["true"]})
    settings = ["seed={index}", "name=it's a 'name'", 'data.source={hdf5: "a b.h5"}']
    out = str(tmp_path / "a run-{index}")
    wanted = allocation(site, 2, None, "90:00", "1-4%2")
    script = train_script(site, wanted, Path("/jobs/my job.yaml"), "digits", out, settings)
    assert f"--output={tmp_path}/a run-%a.slurm-%A_%a.log" in directives(script)
    run = f"<{tmp_path}/a run-3>"
    for standing, code, expected in ((0, 0, 0), (75, 0, 0), (4, 137, 4), (5, 2, 5), (0, 1, 1)):
        ended, told = run_with_stand_ins(script, tmp_path, {"STANDING": str(standing), "CODE": str(code)})
        assert told[0].startswith("srun <-K1> <--mpi=pmix> <--cpus-per-task=16> <--cpu-bind=cores> <--mem-bind=local>")
        assert told[1] == (
            f"parse-mpi <run> </jobs/my job.yaml> <--out> {run} <--set> <seed=3> <--set> <name=it's a 'name'> "
            '<--set> <data.source={hdf5: "a b.h5"}> nic=mlx5_1'
        )
        assert told[2] == f"parse-mpi <status> {run} <--restarts> <5> nic="
        assert ("scontrol requeue 7" in told) == (standing == 75)
        assert ended == expected


def test_a_task_of_a_study_comes_back_until_its_share_is_done(tmp_path):
    script = study_script(Site(), allocation(Site(), 1, None, None, "1-20"), Path("/s.yaml"), "study", "/out")
    for code, requeued in ((0, False), (7, False), (75, True)):
        ended, told = run_with_stand_ins(script, tmp_path, {"CODE": str(code)})
        assert told[0].startswith("srun <-K1>")
        assert "<--mpi=none>" in told[0]
        assert told[1].startswith("parse-mpi <compare> </s.yaml> <--out> </out> <--task> <3> <--tasks> <20>")
        assert ("scontrol requeue 7" in told) == requeued
        assert ended == (0 if requeued else code)
    with pytest.raises(JobError, match="count from 1 on, not by 0-3"):
        study_script(Site(), allocation(Site(), 1, None, None, "0-3"), Path("s"), "s", "o")


def test_the_command_line_checks_the_job_for_its_ranks(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PARSE_MPI_SITE", raising=False)
    job = write_job(tmp_path)
    assert main(["sbatch", str(job), "--out", str(tmp_path / "run"), "--nodes", "11"]) == 2
    assert "11 ranks can't share 10 agents" in capsys.readouterr().err
    command = ["sbatch", str(job), "--out", str(tmp_path / "run-{index}"), "--array", "5-6", "--set"]
    assert main([*command, "agents.{index}.count=2"]) == 2  # with the first index
    assert "agents" in capsys.readouterr().err
    assert main([*command, "seed={index}"]) == 0
    assert 'settings=(--set seed="$SLURM_ARRAY_TASK_ID")' in capsys.readouterr().out
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"node": {"cores": 4, "numa_domains": 2}}))
    monkeypatch.setenv("PARSE_MPI_SITE", str(site))
    assert main(["sbatch", str(job), "--out", str(tmp_path / "run")]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --ntasks-per-node=2" in script
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in script
    assert main(["sbatch", str(tmp_path / "nothing.yaml"), "--out", "run"]) == 2


def test_a_site_file_is_checked_line_by_line(tmp_path):
    assert read_site(find_site(None, {})) == Site() == read_site(shipped("site.yaml"))
    path = tmp_path / "site.yaml"
    path.write_text("partion: gpu\nnode:\n  gpus: many\ntime: soon\ndirectives: [constraint=a100]\n")
    with pytest.raises(JobError) as caught:
        read_site(path)
    told = str(caught.value)
    for line, what in ((1, "did you mean `partition`"), (3, "a whole number"), (4, "is not a time"), (5, "directives")):
        assert f"{path}:{line}" in told
        assert what in told
    path.write_text("- a list\n")
    with pytest.raises(JobError, match="a site is a mapping"):
        read_site(path)
    with pytest.raises(JobError, match="no such site file"):
        read_site(tmp_path / "none.yaml")


SCALING = {
    "name": "scaled", "job": "job.yaml", "repeats": 1, "rounds": 4, "warm_up": 2,
    "curves": {"strong": {"kind": "strong", "ranks": [1, 3], "ranks_per_node": 2}},
    "launch": {"by": "slurm", "threads": 2, "time_limit": "7:00"},
}  # fmt: skip


def test_every_point_of_a_scaling_study_is_a_job_of_its_own(tmp_path, capsys):
    """On as many nodes and cores as the study says; the same words as the study prints to be started by hand."""
    write_job(tmp_path)
    study, out, site = tmp_path / "scaling.yaml", tmp_path / "out", tmp_path / "site.yaml"
    study.write_text(yaml.safe_dump(SCALING))
    site.write_text(yaml.safe_dump({"node": {"cores": 8}, "setup": ["true"], "bind": {"cpu": ""}}))
    assert main(["sbatch", str(study), "--out", str(out), "--site", str(site)]) == 0
    one, three = ("#!/bin/bash" + script for script in capsys.readouterr().out.split("#!/bin/bash")[1:])
    name = "strong,3r,2n,10a,0"
    asked = directives(three)
    for directive in ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", "--time=7:00", "--exclusive"):
        assert directive in asked
    assert f"--output={out}/logs/{name}.slurm-%j.log" in asked
    assert "--nodes=1" in directives(one)
    ended, told = run_with_stand_ins(three, tmp_path)
    assert ended == 0
    assert told[0].startswith("srun <-K1> <--ntasks=3> <--mpi=pmi2> <--cpus-per-task=2> <parse-mpi> <run>")
    assert main(["scaling", str(study), "--out", str(out)]) == 75
    by_hand = next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert told[1] == "parse-mpi " + " ".join(f"<{word}>" for word in shlex.split(by_hand)[1:]) + " nic="


def test_studies_are_told_from_jobs(tmp_path):
    assert what_is(write_job(tmp_path)) == "job"
    for key, kind in (("cells", "study"), ("curves", "scaling")):
        (tmp_path / "study.yaml").write_text(f"name: s\n{key}: {{}}\n")
        assert what_is(tmp_path / "study.yaml") == kind


def test_submitting_needs_slurm_and_tells_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch here"):
        submit("", str(tmp_path / "runs" / "r"))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(LaunchError, match="invalid partition"):
        submit("", str(tmp_path / "runs" / "r"))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho '12;cluster'\n")
    assert submit("", str(tmp_path / "runs" / "r")).startswith("submitted job 12; it writes to ")
    assert (tmp_path / "runs").is_dir()


def test_launches_in_vain_are_counted_until_one_gets_further(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    ended = [(0, 1), (0, 2), (5, 0), (5, 1), (9, 0), (9, 1), (9, 2)]
    assert [count_ended_launch(run, done, first=k == 0) for k, (done, _) in enumerate(ended)] == [n for _, n in ended]
    assert count_ended_launch(run, 9, first=True) == 0  # another job, which may have mended what was wrong
    run.restarts_path.write_text("{")
    assert count_ended_launch(run, 0, first=False) == 1


def test_status_gives_a_job_up_that_gets_no_further(tmp_path, monkeypatch, capsys):
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.job_path.write_text("")
    asked = ["status", str(run.path), "--restarts", "2"]
    run.write_state(RunState(round=4, rounds=9, status="stopped", reason="test"))
    for restarts, code in ((0, 75), (1, 75), (2, 4)):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        assert main(asked) == code
    assert "no launch got past round 4, 2 in a row" in capsys.readouterr().err
    run.write_state(RunState(round=9, rounds=9, status="finished"))
    assert main(asked) == 0
