"""Stop, start again, on as many ranks as there happen to be: the end is that of the run that was never stopped."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from launch import child_environment, run
from real_runs import command, differences, parameter_distance, result, train
from small_jobs import write_dataset, write_job

from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.metrics import read_metrics


def status(out):
    """Exit code and text of `parse-mpi status`."""
    done = subprocess.run(
        [sys.executable, "-m", "parse_mpi", "status", str(out)], capture_output=True, text=True, env=child_environment()
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("topology", ["ring", "random-gossip"])
def test_stopped_and_resumed_on_other_rank_counts_equals_uninterrupted(tmp_path, topology):
    path = write_job(tmp_path, {"mode": "exact", "topology": {"kind": topology}})
    train(path, tmp_path / "whole", 2)
    out = tmp_path / "parts"
    train(path, out, 2, "--stop-after", "4")  # not a multiple of checkpoint.every nor of evaluate.every
    assert status(out)[0] == 75
    assert "round 4 of 12" in status(out)[1]
    train(path, out, 2, "--stop-after", "7")
    train(path, out, 3, "--stop-after", "9")
    outcome = train(path, out, 1)
    assert "resuming after round 9" in outcome.logs[0]
    assert status(out)[0] == 0
    whole, parts = result(tmp_path / "whole"), result(out)
    # A stop evaluates the round that it ends with, so that the stopped run has those evaluations more.
    rounds = parts["evaluations/round"]
    kept = [list(rounds).index(r) for r in whole["evaluations/round"]]
    assert set(rounds) - set(whole["evaluations/round"]) == {4, 7, 9}
    parts |= {name: array[kept] for name, array in parts.items() if name.startswith("evaluations/")}
    assert differences(whole, parts) == []
    assert len(read_metrics(out)["ranks/round"]) == 12


def test_ranks_of_a_node_write_one_shard_with_the_same_rows(tmp_path):
    path = write_job(tmp_path, {"mode": "exact"})
    train(path, tmp_path / "by-rank", 3)
    train(path, tmp_path / "by-node", 3, "--stop-after", "5", "--set", "checkpoint.shards=node")
    train(path, tmp_path / "by-node", 2, "--set", "checkpoint.shards=node")
    for folder, shards in (("by-rank", 3), ("by-node", 1)):
        assert len(list((tmp_path / folder / "checkpoints" / "round-000012").glob("shard-*.h5"))) == shards
    assert differences(result(tmp_path / "by-rank"), result(tmp_path / "by-node")) == []


def test_fast_resumes_within_tolerance_and_on_the_same_ranks_to_the_bit(tmp_path):
    path = write_job(tmp_path)
    train(path, tmp_path / "whole", 2)
    for name, ranks in (("same", 2), ("other", 1)):
        train(path, tmp_path / name, 2, "--stop-after", "5")
        train(path, tmp_path / name, ranks)
    whole = result(tmp_path / "whole")
    assert parameter_distance(whole, result(tmp_path / "same")) == 0
    assert parameter_distance(whole, result(tmp_path / "other")) <= 1e-4


def test_more_rounds_go_on_and_a_finished_run_is_left_alone(tmp_path):
    path, out = write_job(tmp_path, {"mode": "exact"}), tmp_path / "run"
    train(path, out, 1, "--set", "train.rounds=5")
    again = train(path, out, 2, "--set", "train.rounds=5")
    assert "round 5 of 5 is done" in again.logs[0]
    train(path, out, 1)
    train(path, tmp_path / "whole", 1)
    assert differences(result(tmp_path / "whole"), result(out)) == []


def test_another_job_in_the_same_directory_is_refused_and_fresh_keeps_the_old_run(tmp_path):
    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1, "--set", "train.rounds=2")
    before = result(out)
    refused = run(1, command(path, out, "--set", "method.beta=0.25"), tmp_path / "logs")
    assert refused.code == 5
    assert "method.beta: 0.5 -> 0.25" in refused.logs[0]
    assert "--fresh" in refused.logs[0]
    assert differences(before, result(out)) == []
    train(path, out, 1, "--fresh", "--set", "method.beta=0.25", "--set", "train.rounds=2")
    assert differences(before, result(tmp_path / "run.previous-1")) == []
    assert differences(before, result(out)) != []


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path):
    path, out = write_job(tmp_path, {"mode": "exact"}), tmp_path / "run"
    train(path, tmp_path / "whole", 1)
    train(path, out, 2, "--stop-after", "10")
    shard = next((out / "checkpoints" / "round-000010").glob("shard-*.h5"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    outcome = train(path, out, 2)
    assert "round-000010 is not used" in outcome.logs[0]
    assert "resuming after round 5" in outcome.logs[0]
    assert differences(result(tmp_path / "whole"), result(out)) == []


def test_without_a_checkpoint_that_can_be_trusted_nothing_starts_over(tmp_path):
    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1, "--stop-after", "5")
    (out / "checkpoints" / "round-000005" / "manifest.json").write_text("{}")
    refused = run(1, command(path, out), tmp_path / "logs")
    assert refused.code == 5
    assert "none of 1 checkpoints can be trusted" in refused.logs[0]
    assert load_newest(out)[0] is None


def refusal(job, out, *arguments):
    """What the run says when it refuses to go on from what lies in `out`; nothing there may change."""
    before = result(out) if load_newest(out)[0] else None
    refused = run(1, command(job, out, *arguments), out.parent / "refused")
    assert refused.code == 5, refused
    assert before is None or differences(before, result(out)) == []
    return refused.logs[0]


def test_lost_metrics_are_named_before_anything_is_trained(tmp_path):
    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1, "--stop-after", "10")
    segment = out / "metrics" / "round-000005.h5"
    kept = segment.read_bytes()
    segment.unlink()
    refused = run(1, command(path, out), tmp_path / "refused")
    assert refused.code == 5
    assert "the chain ends at round 0 and goes on at round 6" in refused.logs[0]
    segment.write_bytes(kept)
    train(path, out, 1)


def test_lost_checkpoints_do_not_start_the_run_over(tmp_path):
    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1, "--stop-after", "5")
    shutil.rmtree(out / "checkpoints")
    assert "names a checkpoint of round 5" in refusal(path, out)


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1)
    assert "has done 12 rounds already" in refusal(path, out, "--set", "train.rounds=6")
    assert status(out)[0] == 0


def test_a_data_file_may_move(tmp_path):
    data = write_dataset(tmp_path / "abc.h5")
    changes = {"data": {"source": {"hdf5": str(data)}}, "agents": [{"modalities": ["a", "b"], "count": 2}]}
    out = tmp_path / "run"
    train(write_job(tmp_path, changes), out, 1, "--stop-after", "3")
    changes["data"]["source"]["hdf5"] = str(data.rename(tmp_path / "moved, here.h5"))
    outcome = train(write_job(tmp_path, changes), out, 1)
    assert "resuming after round 3" in outcome.logs[0]


def test_other_data_under_the_same_job_is_refused(tmp_path):
    data = write_dataset(tmp_path / "abc.h5")
    kinds = [{"modalities": ["a", "b"], "count": 2}]
    path = write_job(tmp_path, {"data": {"source": {"hdf5": str(data)}}, "agents": kinds})
    train(path, tmp_path / "run", 1, "--stop-after", "3")
    write_dataset(data, count=250)
    refused = run(1, command(path, tmp_path / "run"), tmp_path / "logs")
    assert refused.code == 5
    assert "other data" in refused.logs[0]


def test_provenance_lists_every_launch(tmp_path):
    import yaml

    path, out = write_job(tmp_path), tmp_path / "run"
    train(path, out, 1, "--stop-after", "2")
    train(path, out, 2, "--stop-after", "4")
    launches = yaml.safe_load((out / "provenance.yaml").read_text())
    assert [(len(launch["ranks"]), launch["first_round"]) for launch in launches] == [(1, 0), (2, 2)]
    assert set(launches[0]["versions"]) >= {"torch", "numpy", "mpi4py", "h5py", "mpi", "python", "parse_mpi"}
    assert json.loads((out / "state.json").read_text())["status"] == "stopped"
    log = (out / "log" / "rank-0001.log").read_text()
    assert re.search(r"resuming after round 2", log)


def test_a_checkpoint_whose_metrics_are_gone_is_not_used_and_that_is_said(tmp_path):
    path, out = write_job(tmp_path, {"mode": "exact"}), tmp_path / "run"
    train(path, tmp_path / "whole", 1)
    train(path, out, 1, "--stop-after", "10")
    (out / "metrics" / "round-000010.h5").unlink()
    outcome = train(path, out, 1)
    assert "checkpoint round-000010 is not used" in outcome.logs[0]
    assert "the metrics of rounds 1 to 10 are not complete" in outcome.logs[0]
    assert "resuming after round 5" in outcome.logs[0]
    assert differences(result(tmp_path / "whole"), result(out)) == []
