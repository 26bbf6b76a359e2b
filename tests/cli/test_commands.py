"""Commands as a user types them: what they print, how they end, and what they must not need."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from datetime import datetime, timedelta, timezone

import h5py
import pytest
import yaml
from launch import ROOT, child_environment
from small_jobs import write_dataset, write_job
from test_display import on_a_terminal

from parse_mpi.cli import main
from parse_mpi.errors import JobError
from parse_mpi.jobfile import load_job
from parse_mpi.storage.rundir import RunDirectory, RunState

QUICKSTART = "jobs/quickstart.yaml"


def parse_mpi(*arguments, **environment):
    """(exit code, standard output, standard error) of one command, started without a launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "parse_mpi", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=child_environment() | environment, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with files of the names and shapes that ready jobs read, where the real ones may be absent."""
    folder = tmp_path_factory.mktemp("data")
    places, sensors = ("torso", "right_arm", "left_arm", "right_leg", "left_leg"), ("acc", "gyro", "mag")
    shapes = {
        "mfeat": {"fou": (76,), "fac": (216,), "kar": (64,), "pix": (240,), "zer": (47,), "mor": (6,)},
        "utd_mhad": {"inertial": (64, 6), "skeleton": (32, 20, 3), "depth": (8, 32, 32)},
        "dsa": {f"{place}_{sensor}": (62, 3) for place in places for sensor in sensors},
        "digits_av": {"audio": (32, 32), "image": (28, 28), "pen": (8, 2)},
        "digits_xor": {"audio": (32, 32), "image": (28, 28)},
        "wikipedia": {"image": (128,), "text": (10,)},
    }
    for name, modalities in shapes.items():
        write_dataset(folder / f"{name}.h5", modalities, classes=10, count=900)
    return folder


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("*.yaml")))
def test_every_ready_job_is_sound_and_can_be_planned(job, stand_ins, monkeypatch, capsys):
    monkeypatch.setenv("PARSE_MPI_DATA", str(stand_ins))
    assert main(["check", str(ROOT / "jobs" / job), "-n", "2"]) == 0
    assert capsys.readouterr() == (f"{ROOT / 'jobs' / job}: sound\n", "")
    assert main(["plan", str(ROOT / "jobs" / job), "-n", "2"]) == 0
    table, err = capsys.readouterr()
    assert err == ""
    assert "redundant_head" in table


def test_check_names_every_error_of_schema_and_data_with_its_line(tmp_path):
    job = write_job(tmp_path)
    text = job.read_text().replace("batch_size: 96", "batch_sise: 96").replace("slices:", "slices: {unique: 0}\n  x:")
    job.write_text(text)
    code, _, err = parse_mpi("check", job)
    assert code == 2
    lines = [k + 1 for k, line in enumerate(text.splitlines()) if "batch_sise" in line or "unique: 0" in line]
    for line in lines:
        assert f"{job}:{line}: " in err
    assert "batch_size" in err


def test_check_tells_problems_of_schema_data_and_ranks_together_in_reading_order(tmp_path):
    code, _, err = parse_mpi(
        "check", QUICKSTART, "-n", 40, "--set", "train.round=3", "--set", "agents.1.modalities=[botom]"
    )
    assert code == 2
    assert err.startswith("error: 3 problems in the job:\n")
    wheres = re.findall(r"^  (\S.*?): ", err, re.M)
    assert wheres == ["--set agents.1.modalities", "--set train.round", "ranks"]
    agents = [
        {"modalities": ["top"], "count": 4},
        {"modalities": [5], "count": 9},
        {"modalities": ["botom"], "count": 4},
    ]
    job = write_job(tmp_path, {"agents": agents, "train": {"rounds": 0}})
    text = job.read_text().splitlines()
    code, _, err = parse_mpi("plan", job, "-n", 16)
    assert code == 2
    found = {text[int(line) - 1].strip() for line in re.findall(rf"^  {job}:([0-9]+): ", err, re.M)}
    assert found == {"- 5", "- modalities:", "rounds: 0"}
    assert err.startswith("error: 3 problems in the job:\n")  # 17 agents are enough for 16 ranks


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["topology=rign", "agents.0.modalities=[to]"],
            ["no topology `rign`", "no data for modality 'to'", "31 ranks"],
        ),
        (["method.name=pars", "agents.0.modalities=[to]"], ["`method.name`", "no data for modality 'to'", "31 ranks"]),
        (["data.source={hdf5: none.h5}", "agents.0.modalities=[to]"], ["no file 'none.h5'", "31 ranks"]),
        (["data.sorce={pid: {}}"], ["unknown key `data.sorce`", "31 ranks"]),
        (["agents.0.count=0", "agents.1.modalities=[to]"], ["`agents.0.count`", "no data for modality 'to'"]),
        (["agents.0.count=0", "agents.0.modalities=[to]"], ["`agents.0.count`", "no data for modality 'to'"]),
        (["agents.3.count=5"], ["`agents` has no entry 3"]),
        (["agnts=[]", "train.round=3"], ["unknown key `agnts`", "unknown key `train.round`", "31 ranks"]),
        (["agents=[]", "train.round=3"], ["`agents`", "unknown key `train.round`"]),
        (["mode=exact", "engine=stacked", "train.round=3"], ["needs engine: loop", "`train.round`", "31 ranks"]),
        (["data.partition.min_per_agent=0"], ["`data.partition.min_per_agent`", "31 ranks"]),
        (["data.partition.min_per_agent=300", "train.round=3"], ["9000 training samples", "`train.round`", "31 ranks"]),
        (
            ["topology={kind: erdos-renyi, probability: 0.01}", "train.round=3"],
            ["graph 'top'", "graph 'bottom'", "falls apart", "`train.round`", "31 ranks"],
        ),
        (["topology={kind: erdos-renyi, probability: 0.01}", "agents.0.count=0"], ["`agents.0.count`"]),
        (["topology={kind: erdos-renyi, probability: 0.01}", "sed=2", "seed=1"], ["`sed`", "graph", "31 ranks"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_what_was_left_out_hides_no_problem_and_makes_none(changes, said, capsys):
    """quickstart.yaml has 30 agents: one too few for these ranks."""
    assert main(["check", str(ROOT / QUICKSTART), "-n", "31", *(f"--set={change}" for change in changes)]) == 2
    head, *problems = re.split(r"\n  (?=\S)", capsys.readouterr().err)
    for part in said:
        assert any(part in problem for problem in problems), (part, problems)
    unexpected = [problem for problem in problems if not any(part in problem for part in said)]
    assert unexpected == []
    assert len(set(problems)) == len(problems)
    assert head.startswith(f"error: {len(problems)} problem")


def paths_of(value, above=()):
    """The path of every entry of nested mappings and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*above, key)
        yield from paths_of(entry, (*above, key))


def test_no_mistake_makes_a_job_that_just_fits_seem_not_to_fit(tmp_path, capsys):
    """The ring of agents, the samples and the ranks allow nothing less: whatever is left out could break them."""
    kinds = [["top"], ["top", "bottom"], ["bottom"]]
    sound = {
        "name": "fits", "seed": 0,
        "data": {"source": "digits", "partition": {"kind": "iid", "min_per_agent": 69}},
        "agents": [{"modalities": modalities, "count": 6} for modalities in kinds],
        "topology": {"kind": "ring", "scope": "induced", "allow_disconnected": False},
        "method": {"name": "parse", "beta": 0.5}, "train": {"rounds": 3},
    }  # fmt: skip
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(sound))
    assert main(["check", str(path), "-n", "18"]) == 0
    assert main(["check", str(path), "-n", "19", "--set", "data.partition.min_per_agent=70"]) == 2
    for keys in paths_of(sound):
        for misspelt in (False, True):
            job = deepcopy(sound)
            *parents, last = keys
            section = job
            for key in parents:
                section = section[key]
            if misspelt and isinstance(last, int):
                continue
            section[f"{last}x" if misspelt else last] = section.pop(last) if misspelt else {"wrong": -1}
            path.write_text(yaml.safe_dump(job))
            with pytest.raises(JobError) as own:
                load_job(path)
            capsys.readouterr()
            assert main(["check", str(path), "-n", "18"]) == 2
            assert capsys.readouterr().err == f"error: {own.value}\n", keys


@pytest.mark.parametrize("data", [{"dta": {"source": {"pid": {}}}}, {"data": {"sorce": {"pid": {}}}}])
def test_a_misspelt_data_source_is_not_taken_for_the_default_one(data, tmp_path, capsys):
    agents = [{"modalities": ["first", "second"], "count": 3}]
    rest = {"name": "x", "agents": agents, "topology": {"kind": "ring"}, "method": {"name": "parse"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(data | rest))
    assert main(["check", str(tmp_path / "job.yaml"), "-n", "4"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: 2 problems in the job:\n")
    assert "unknown key" in err
    assert "4 ranks" in err


def test_a_broken_data_file_is_one_of_the_problems(tmp_path, capsys):
    data = write_dataset(tmp_path / "abc.h5")
    with h5py.File(data, "r+") as file:
        del file["labels"]
    agents = [{"modalities": ["a"], "count": 4}]
    job = write_job(tmp_path, {"data": {"source": {"hdf5": str(data)}}, "agents": agents, "train": {"rounds": 0}})
    assert main(["check", str(job)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: 2 problems in the job:\n")
    assert "labels" in err
    assert main(["check", str(job), "--set", "train.rounds=1"]) == 3


def test_check_explains_what_only_data_graphs_and_ranks_show(tmp_path):
    broken = {"kind": "ring", "scope": "induced"}
    agents = [{"modalities": ["top"], "count": 4}, {"modalities": ["botom"], "count": 4}]
    code, _, err = parse_mpi("check", write_job(tmp_path, {"topology": broken, "agents": agents}))
    assert code == 2
    assert "did you mean 'bottom'" in err
    agents[1]["modalities"] = ["top", "bottom"]
    agents.append({"modalities": ["bottom"], "count": 2})
    code, _, err = parse_mpi("check", write_job(tmp_path, {"topology": broken, "agents": agents}), "-n", 11)
    assert code == 2
    assert "graph 'top' of 8 agents" not in err
    assert "graph 'bottom' of 6 agents" not in err
    assert "11 ranks can't share 10 agents" in err
    agents.append({"modalities": ["top"], "count": 2})
    code, _, err = parse_mpi("check", write_job(tmp_path, {"topology": broken, "agents": agents}))
    assert code == 0
    agents.append({"modalities": ["bottom"], "count": 2})
    code, _, err = parse_mpi("check", write_job(tmp_path, {"topology": broken, "agents": agents}))
    assert code == 2
    assert "graph 'bottom' of 8 agents falls apart into 2 components: {4, 5, 6, 7, 8, 9} (6); {12, 13} (2)" in err


def test_plan_shows_slices_graphs_links_ranks_and_the_best_accuracy(tmp_path):
    code, out, _ = parse_mpi("plan", "jobs/pid.yaml", "-n", 3)
    assert code == 0
    for part in ("encoder[first]", "synergy_head", "random-gossip of complete, overlay", "first+second – first+second",
                 "best reachable accuracy of first+second: 0.9752", "communicators: ", "memory"):  # fmt: skip
        assert part in out


def test_plan_of_1000_agents_sums_them_up(tmp_path):
    many = [f"--set=agents.{k}.count={count}" for k, count in enumerate((330, 330, 340))]
    few = "--set=data.partition.min_per_agent=1"
    code, out, _ = parse_mpi("plan", QUICKSTART, "-n", 8, few, *many)
    assert code == 0
    assert len(out.splitlines()) < 100
    code, listed, _ = parse_mpi("plan", QUICKSTART, "-n", 8, few, *many, "--agents")
    assert code == 0
    assert len(listed.splitlines()) > 1000


def test_plan_tells_nodes_apart(capsys):
    assert main(["plan", str(QUICKSTART), "-n", "5", "--ranks-per-node", "2", "--set", "placement=minimum-cut"]) == 0
    out = capsys.readouterr().out
    assert "between nodes" in out
    assert "minimum-cut *" in out
    with pytest.raises(SystemExit):
        main(["plan", str(QUICKSTART), "-n", "5", "--ranks-per-node", "0"])
    assert "'0' is no number from 1 on" in capsys.readouterr().err


LIGHT = {
    "check": (["check", QUICKSTART], ["torch", "mpi4py", "matplotlib"]),
    "check, minimum cut": (["check", QUICKSTART, "-n", "4", "--set", "placement=minimum-cut"], ["torch", "mpi4py"]),
    "plan": (["plan", QUICKSTART], ["mpi4py", "matplotlib"]),
    "status": (["status", "runs/none"], ["torch", "mpi4py", "matplotlib", "sklearn"]),
}


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_stay_light(command):
    arguments, heavy = LIGHT[command]
    script = (
        "import json, sys; from parse_mpi.cli import main; main(json.loads(sys.argv[1])); "
        "print(json.dumps(sorted(set(json.loads(sys.argv[2])) & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(arguments), json.dumps(heavy)],
        capture_output=True, text=True, cwd=ROOT, env=child_environment(), check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_run_from_start_to_report_without_a_launcher(tmp_path):
    job, out = write_job(tmp_path), tmp_path / "run"
    code, text, err = parse_mpi("run", job, "--out", out)
    assert (code, err) == (0, "")
    kinds = "10 agents (3 top, 3 bottom, 4 top+bottom) on 1 rank"
    for part in (kinds, "round    12/12", "Test accuracy after round 12", "bytes:", "ms a round"):
        assert part in text
    code, text, _ = parse_mpi("status", out)
    assert code == 0
    assert "finished at round 12 of 12" in text
    code, text, _ = parse_mpi("report", out)
    assert code == 0
    pictures = [line for line in text.splitlines() if line.endswith(".png")]
    assert {os.path.basename(p) for p in pictures} >= {"accuracy.png", "losses.png", "consensus.png", "graphs.png",
                                                       "classes.png"}  # fmt: skip
    assert all(os.path.getsize(p) > 5000 for p in pictures)


def test_status_of_no_run_is_an_error_so_that_nothing_is_requeued_for_ever(tmp_path, capsys):
    assert main(["status", str(tmp_path / "nope")]) == 5
    assert "there is no such directory" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["status", str(tmp_path / "empty")]) == 5
    said = capsys.readouterr().err
    assert "holds no run (no job.yaml)" in said
    assert f"parse-mpi run JOB --out {tmp_path / 'empty'}" in said
    (tmp_path / "empty" / "job.yaml").write_text("name: x\n")  # killed before its first state
    assert main(["status", str(tmp_path / "empty")]) == 75


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(seconds=1), "1 second ago"),
        (timedelta(minutes=5, seconds=59), "5 minutes ago"),
        (timedelta(hours=3, minutes=20), "3 hours ago"),
        (timedelta(days=2, hours=1), "2 days ago"),
        (timedelta(seconds=-30), "0 seconds ago"),  # clocks of two machines differ
    ],
)
def test_status_says_when_a_running_state_was_last_written(tmp_path, capsys, monkeypatch, age, shown):
    now = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
    monkeypatch.setattr("parse_mpi.cli.runs._now", lambda: now)
    run = RunDirectory(tmp_path)
    run.create()
    run.job_path.write_text("name: x\n")
    run.write_state(RunState(round=50, rounds=300, status="running", time=(now - age).isoformat(timespec="seconds")))
    assert main(["status", str(tmp_path)]) == 75
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: running at round 50 of 300, last written {shown} (2026-")
    assert "; no launch is at work; start the same command again to go on" in out


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_ctrl_c_ends_with_130_and_no_traceback(command, tmp_path):
    """Each command waits in a pipe that nobody writes to; a run takes the first Ctrl-C as a wish to stop."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    arguments = [pipe, *(["--out", tmp_path / "run"] if command == "run" else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "parse_mpi", command, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=child_environment(),
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    try:
        writer = wait_for_reader(pipe)
        process.send_signal(signal.SIGINT)
        if command == "run":
            assert process.stderr.readline().startswith("SIGINT received")
            process.send_signal(signal.SIGINT)
        else:
            os.close(writer)  # the signal counts even if it came just before the command began to read
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.startswith("interrupted")
    assert len(err.splitlines()) == 1


def heed_interrupts():
    """What a shell starts in the background is born deaf to SIGINT, and these tests may be among it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_reader(pipe):
    """The writing end of a named pipe, as soon as somebody waits at the other."""
    until = time.monotonic() + 60
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_without_an_mpi_library_a_run_says_so_and_check_works(tmp_path):
    code, _, err = parse_mpi("run", QUICKSTART, "--out", tmp_path / "run", MPI4PY_LIBMPI="/nonexistent")
    assert code == 4
    assert err.startswith("error: MPI can't be used: ")
    assert "/nonexistent" in err
    assert "parse-mpi doctor" in err
    assert not (tmp_path / "run").exists()
    assert parse_mpi("check", QUICKSTART, MPI4PY_LIBMPI="/nonexistent")[0] == 0


def test_a_traceback_is_there_for_who_asks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "parse_mpi", "run", "jobs/nothing.yaml", "--out", tmp_path / "run"],
        capture_output=True, text=True, cwd=ROOT, env=child_environment() | {"PARSE_MPI_TRACE": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "there is no such file" in done.stderr


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("job", [QUICKSTART, "jobs/pid.yaml"])
def test_a_terminal_of_80_columns_is_enough(command, job):
    code, text = on_a_terminal([sys.executable, "-m", "parse_mpi", command, job, "-n", "3"])
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert code == 0, plain
    assert "Traceback" not in plain
    assert max(map(len, plain.splitlines())) <= 80, plain


def test_a_non_finite_loss_ends_the_run_with_agent_round_and_term(tmp_path):
    job, out = write_job(tmp_path, {"train": {"optimiser": {"lr": 1e3}}}), tmp_path / "run"
    code, _, err = parse_mpi("run", job, "--out", out)
    assert code == 6
    assert "not finite: agent" in err
    assert "train.optimiser.lr" in err
    assert parse_mpi("status", out)[0] == 6
    state = json.loads((out / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 6)


@pytest.mark.parametrize("name", ["check", "status"])
def test_who_stops_reading_gets_no_traceback(name, tmp_path):
    run = RunDirectory(tmp_path)
    run.create()
    run.job_path.write_text("name: x\n")
    reader, pipe = os.pipe()
    os.close(reader)
    with os.fdopen(pipe, "w") as output:
        arguments = [sys.executable, "-m", "parse_mpi", name, QUICKSTART if name == "check" else str(tmp_path)]
        done = subprocess.run(
            arguments, stdout=output, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=child_environment()
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_help_teaches_and_bad_arguments_are_explained():
    code, out, _ = parse_mpi("--help")
    assert code == 0
    for command in ("check", "plan", "run", "status", "report", "doctor"):
        assert f"parse-mpi {command}" in out or command in out
    assert parse_mpi("run", QUICKSTART)[0] == 2
    code, _, err = parse_mpi("run", QUICKSTART, "--out", "x", "--stop-after", "0")
    assert code == 2
    assert "rounds count from 1" in err
    code, _, err = parse_mpi("check", "jobs/quickstrat.yaml")
    assert code == 2
    assert "did you mean jobs/quickstart.yaml?" in err
