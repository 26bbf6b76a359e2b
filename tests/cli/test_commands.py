"""Commands as a user types them: what they print, how they end, and what they must not need."""

import json
import os
import subprocess
import sys

import pytest
from launch import ROOT, child_environment
from small_jobs import write_dataset, write_job

QUICKSTART = "jobs/quickstart.yaml"


def parse_mpi(*arguments, **environment):
    """(exit code, standard output, standard error) of one command, started without a launcher."""
    done = subprocess.run(
        [sys.executable, "-m", "parse_mpi", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=child_environment() | environment, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("*.yaml")))
def test_every_ready_job_is_sound(job, tmp_path):
    shapes = {"mfeat": {"fou": (76,), "kar": (64,)}, "utd_mhad": {"inertial": (64, 6), "skeleton": (32, 20, 3)}}
    for name, modalities in shapes.items():
        write_dataset(tmp_path / f"{name}.h5", modalities, classes=27, count=900)
    code, out, err = parse_mpi("check", f"jobs/{job}", "-n", 2, PARSE_MPI_DATA=str(tmp_path))
    assert (code, err) == (0, "")
    assert out == f"jobs/{job}: sound\n"


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
    for part in ("encoder[first]", "synergy_head", "random-gossip, overlay", "first+second – first+second",
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


LIGHT = {
    "check": (["check", QUICKSTART], ["torch", "mpi4py", "matplotlib"]),
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
    assert parse_mpi("status", out)[0] == 75
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


def test_a_non_finite_loss_ends_the_run_with_agent_round_and_term(tmp_path):
    job, out = write_job(tmp_path, {"train": {"optimiser": {"lr": 1e9}}}), tmp_path / "run"
    code, _, err = parse_mpi("run", job, "--out", out)
    assert code == 6
    assert "not finite: agent" in err
    assert "train.optimiser.lr" in err
    assert parse_mpi("status", out)[0] == 6
    state = json.loads((out / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 6)


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
