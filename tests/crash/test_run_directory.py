"""Run directories that misbehave, and launches that meet in one: a clear message, the right exit code, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml
from launch import ROOT, Launch, child_environment, run
from real_runs import command, differences, result, train
from small_jobs import write_job

from parse_mpi.cli import main

CHANGES = {"mode": "exact", "checkpoint": {"every": 1}, "train": {"rounds": 12}}

# The real command, whose run directory meets with a fault before some of the rounds: {"3": "quota"}.
DISTURBED = """
import errno, json, os, sys
from pathlib import Path
from parse_mpi.cli import main
from parse_mpi.run.trainer import Trainer

faults = json.loads(os.environ["FAULTS"])
run = Path(sys.argv[sys.argv.index("--out") + 1])
aside, shards, shards_aside = run.with_name("aside"), run / "checkpoints", run / "log" / "aside"
train_round, operations = Trainer.train_round, (os.pwrite, os.posix_fallocate)

def no_quota(*arguments):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

def quota():
    os.pwrite = os.posix_fallocate = no_quota

def more_quota():
    os.pwrite, os.posix_fallocate = operations

def vanish():
    run.rename(aside)

def come_back():
    assert not run.exists()
    aside.rename(run)

def a_file():
    shards.rename(shards_aside)
    shards.touch()

def a_folder():
    shards.unlink()
    shards_aside.rename(shards)

def disturbed(self, round_index):
    if what := faults.get(str(round_index + 1)):
        self.settle()
        if self.world.rank == 0:
            globals()[what]()
        self.world.barrier()
    return train_round(self, round_index)

Trainer.train_round = disturbed
sys.exit(main())
"""

# The real command on a machine of another name and with little patience; it waits in mid-run while a file is there.
ELSEWHERE = """
import os, sys, time
from pathlib import Path
import parse_mpi.storage.owner as owner
from parse_mpi.cli import main
from parse_mpi.run.trainer import Trainer

owner.HEARTBEAT_S, owner.WATCH_S, owner.POLL_S = 0.2, 1.5, 0.1
owner._boot = lambda: os.environ["MACHINE"]
train_round, hold = Trainer.train_round, Path(os.environ["HOLD"])

def held(self, round_index, *arguments):
    if round_index == 2:
        self.settle()
        while hold.exists():
            time.sleep(0.05)
    return train_round(self, round_index, *arguments)

Trainer.train_round = held
sys.exit(main())
"""

# Commands one after the other in one process; each line of standard input is one, and the codes are the last line.
COMMANDS = """
import json, sys
from parse_mpi.cli import main

codes = []
for line in sys.stdin:
    try:
        codes.append(main(json.loads(line)))
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""

# Every look at the clock is an hour before the one before.
CLOCK_GOES_BACK = """
import time
from datetime import datetime, timedelta, timezone
import parse_mpi.cli.runs, parse_mpi.run.provenance, parse_mpi.storage.rundir

hours = iter(range(10**6, 0, -1))

class Backwards(datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(hours=next(hours))

time.time = lambda: 3600.0 * next(hours)
for module in (parse_mpi.cli.runs, parse_mpi.run.provenance, parse_mpi.storage.rundir):
    module.datetime = Backwards
"""


def run_commands(*commands, before=""):
    """(exit codes, standard output, standard error) of parse-mpi commands in one process without a launcher."""
    lines = [json.dumps([str(argument) for argument in command]) for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", before + COMMANDS], input="\n".join(lines),
        capture_output=True, text=True, cwd=ROOT, env=child_environment(), timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job and its run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    job = write_job(folder, CHANGES)
    train(job, folder / "run", 1)
    return job, folder / "run"


@contextmanager
def read_only(folder):
    """The folder can't be written to meanwhile; for root it takes a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("root may not mount here: run it where root has CAP_SYS_ADMIN, or as another user")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_start_where_nothing_can_be_written_says_what_to_do(whole, tmp_path):
    job, source = whole
    for name in ("protected/run", "started", "occupied"):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "file").write_text("dear")
    for name in ("started", "occupied"):  # what a launch leaves that was killed before its first checkpoint
        shutil.rmtree(tmp_path / name / "checkpoints")
        (tmp_path / name / "state.json").unlink()
    (tmp_path / "occupied" / "checkpoints").write_text("dear")
    shutil.rmtree(tmp_path / "started" / "metrics")
    (tmp_path / "started" / "metrics.h5").unlink()
    expected = {
        "protected/run": ["protected/run/owner.json: can't be written: ", "choose another directory"],
        "protected/new": ["protected/new: can't be made: ", "choose another directory"],
        "file": ["file: is a file; choose a directory"],
        "file/run": ["file/run: can't be made: Not a directory. A file stands where a directory belongs: move it"],
        "occupied": ["occupied/checkpoints: can't be made: File exists. A file stands where a directory belongs"],
        "missing/parent/run": [],
        "started": [],
    }
    with read_only(tmp_path / "protected"), read_only(tmp_path / "protected" / "run"):
        starts = [["run", job, "--out", tmp_path / name, "--stop-after", 1] for name in expected]
        codes, _, err = run_commands(*starts)
    for name, code in zip(expected, codes, strict=True):
        assert code == (5 if expected[name] else 0), (name, err)
        for part in expected[name]:
            assert part in err, (name, err)
    assert (tmp_path / "file").read_text() == (tmp_path / "occupied" / "checkpoints").read_text() == "dear"
    assert differences(result(tmp_path / "protected" / "run"), result(source)) == []
    assert not list(tmp_path.rglob("owner.json")) + list(tmp_path.rglob(".owner*"))


def test_what_is_left_of_a_run_without_its_job_is_not_replaced(whole, tmp_path):
    job, source = whole
    for name in ("gone", "unreadable", "aside"):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "gone" / "job.yaml").unlink()
    (tmp_path / "aside" / "job.yaml").unlink()
    (tmp_path / "unreadable" / "job.yaml").write_text("rubbish: 1\n")
    start = ["run", job, "--stop-after", 1, "--out"]
    codes, _, err = run_commands(
        [*start, tmp_path / "gone"], [*start, tmp_path / "unreadable"], [*start, tmp_path / "aside", "--fresh"]
    )
    assert codes == [5, 5, 0], err
    assert "gone: holds checkpoints or metrics of a run, and no job.yaml. Put it back" in err
    assert "unreadable: its job.yaml can't be read as the job that was started there. " in err
    assert "unreadable/job.yaml:1: unknown key `rubbish`" in err
    assert "Put it back as it was, choose another --out, or start over with --fresh" in err
    for name in ("gone", "unreadable", "aside.previous-1"):
        assert differences(result(tmp_path / name), result(source)) == []


def disturbed(job, out, ranks, faults):
    environment = {"FAULTS": json.dumps(faults)}
    arguments = [sys.executable, "-c", DISTURBED, "run", str(job), "--out", str(out)]
    return run(ranks, arguments, out.with_name("logs"), 120, environment)


def test_a_directory_that_fails_for_a_while_costs_nothing_but_its_checkpoints(whole, tmp_path):
    job, source = whole
    faults = {3: "quota", 5: "more_quota", 6: "vanish", 8: "come_back", 9: "a_file", 11: "a_folder"}
    outcome = disturbed(job, tmp_path / "run", 2, faults)
    assert outcome.code == 0, outcome
    said = {
        3: "Disk quota exceeded. Your quota there is used up",
        4: "Disk quota exceeded. Your quota there is used up",
        6: "owner.json: can't be renewed: No such file or directory. If the run directory was moved away, move it back",
        7: "owner.json: can't be renewed: No such file or directory. If the run directory was moved away, move it back",
        9: "A file stands where a directory belongs: move it aside",
        10: "A file stands where a directory belongs: move it aside",
    }
    warned = {
        int(line.split("round ")[1].split(":")[0]): line
        for line in outcome.logs[0].splitlines()
        if "NO CHECKPOINT WRITTEN, training goes on from memory: " in line
    }
    assert warned.keys() == said.keys(), outcome
    for done, what in said.items():
        assert what in warned[done]
    assert differences(result(tmp_path / "run"), result(source)) == []
    assert main(["status", str(tmp_path / "run")]) == 0


def test_a_directory_that_never_comes_back_ends_the_run_with_an_error_and_goes_on_elsewhere(whole, tmp_path, capsys):
    job, source = whole
    outcome = disturbed(job, tmp_path / "run", 1, {6: "vanish"})
    assert outcome.code == 5, outcome
    assert f"error: {tmp_path / 'run'}/owner.json: can't be renewed: No such file" in outcome.logs[0]
    assert "round 12: NO CHECKPOINT WRITTEN" in outcome.logs[0]
    assert not (tmp_path / "run").exists()
    aside = tmp_path / "aside"
    assert main(["status", str(aside)]) == 75
    said = capsys.readouterr().out
    assert f"{aside}: running at round 5 of 12" in said
    assert "is gone; start the same command again to go on" in said
    train(job, aside, 1)
    assert differences(result(aside), result(source)) == []


# -- two launches ----------------------------------------------------------------------------------------------------


def elsewhere(job, out, machine, hold, ranks, logs):
    environment = {"MACHINE": machine, "HOLD": str(hold)}
    arguments = ["run", str(job), "--out", str(out), "--set", "checkpoint.every=2"]
    return Launch(ranks, [sys.executable, "-c", ELSEWHERE, *arguments], logs, environment)


def test_a_second_launch_is_refused_and_a_suspended_one_is_overtaken_for_good(whole, tmp_path, capsys):
    job, source = whole
    out, hold, no_hold = tmp_path / "run", tmp_path / "hold", tmp_path / "none"
    hold.touch()
    with elsewhere(job, out, "one", hold, 2, tmp_path / "first") as first:
        first.wait_until(lambda: list((out / "checkpoints").glob("round-*")), 60)
        with elsewhere(job, out, "one", no_hold, 1, tmp_path / "refused") as second:
            refused = second.wait(60)
        assert refused.code == 5, refused
        owner = json.loads((out / "owner.json").read_text())
        for part in ("another launch is at work there", f"host {owner['host']}, pid {owner['pid']}, since", "--out"):
            assert part in refused.logs[0]
        assert "watching" not in refused.logs[0]
        assert main(["status", str(out)]) == 75
        assert f"running on host {owner['host']}, pid {owner['pid']}, since" in capsys.readouterr().out
        for pid in first.pids():
            os.kill(pid, signal.SIGSTOP)
        with elsewhere(job, out, "two", no_hold, 1, tmp_path / "second") as second:
            overtaking = second.wait(60)
        assert overtaking.code == 0, overtaking
        assert "watching its heartbeat" in overtaking.logs[0]
        assert "WARNING: " in overtaking.logs[0]
        stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.suffix != ".log"}
        for pid in first.pids():
            os.kill(pid, signal.SIGCONT)
        time.sleep(1)  # heartbeats, of which the first tells it to stop after the round
        hold.unlink()
        overtaken = first.wait(60)
    assert overtaken.code == 5, overtaken
    why = "its owner.json was removed, by hand or by a launch that took over and has ended"
    assert f"error: round 3: {out}: {why}" in overtaken.logs[0]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert differences(result(out), result(source)) == []
    assert main(["status", str(out)]) == 0


def test_two_launches_at_once_leave_one_whole_run(whole, tmp_path):
    job, source = whole
    out = tmp_path / "run"
    logs = [tmp_path / "a", tmp_path / "b"]
    with Launch(1, command(job, out), logs[0]) as first, Launch(1, command(job, out), logs[1]) as second:
        codes = sorted([first.wait(60).code, second.wait(60).code])
    assert codes in ([0, 0], [0, 5])  # where the first had ended before the second began, nothing was left to do
    assert differences(result(out), result(source)) == []


# -- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_changes_nothing(whole, tmp_path):
    job, source = whole
    out = tmp_path / "run"
    start = ["run", job, "--out", out]
    codes, said, err = run_commands([*start, "--stop-after", 5], start, ["status", out], before=CLOCK_GOES_BACK)
    assert codes == [0, 0, 0], err
    assert "resuming after round 5" in said
    assert differences(result(out), result(source)) == []
    times = [launch["time"] for launch in yaml.safe_load((out / "provenance.yaml").read_text())]
    assert len(times) == 2
    assert times[1] < times[0]
