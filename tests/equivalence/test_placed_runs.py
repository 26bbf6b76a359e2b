"""Where agents live decides nothing that they compute (design rule 1), on any number of ranks and across restarts."""

import pytest
import yaml
from real_runs import differences, result, train
from small_jobs import write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.storage.metrics import read_metrics
from parse_mpi.studies.recorded import RecordedRun

PLACEMENTS = ("share", "contiguous", "round-robin", "by-modality", "minimum-cut")
# Agent 9 comes late, and the first three leave.
EVENTS = [
    {"kind": "join", "round": 4, "agents": [9]},
    {"kind": "leave", "round": 8, "agents": {"holding": ["top"]}},
]
STATIC = {"topology": {"kind": "torus"}, "events": EVENTS}
DRAWN = {"topology": {"kind": "random-gossip"}}


@pytest.mark.parametrize(
    ("job", "placements"),
    [(STATIC, PLACEMENTS), (DRAWN, ("by-modality", "minimum-cut"))],
    ids=["a torus and events", "gossip"],
)
def test_exact_gives_the_same_bits_under_any_placement(tmp_path, job, placements):
    """Of graphs that are not drawn, the bytes of the whole run are those that the plan foresees."""
    path = write_job(tmp_path, {**job, "mode": "exact"})
    train(path, tmp_path / "alone", 1)
    expected = result(tmp_path / "alone")
    hosts, sent = {}, {}
    for name in placements:
        train(path, tmp_path / name, 3, "--set", f"placement={name}")
        assert differences(expected, result(tmp_path / name)) == [], name
        hosts[name] = RecordedRun.read(tmp_path / name).rank_of
        sent[name] = int(read_metrics(tmp_path / name)["ranks/sent_bytes"].sum())
    assert len({rank_of.tobytes() for rank_of in hosts.values()}) == len(placements)
    if job is STATIC:
        plan = make_plan(jobfile := load_job(path), load_dataset(jobfile.job.data, jobfile.job.seed), 3)
        assert sent == {name: plan.traffic().between(rank_of).total for name, rank_of in hosts.items()}
        assert sent["minimum-cut"] < min(sent["share"], sent["round-robin"])  # by kind it is less, with uneven work


def test_a_run_goes_on_under_another_placement(tmp_path):
    path = write_job(tmp_path, {"mode": "exact"})
    train(path, tmp_path / "alone", 1)
    out = tmp_path / "moved"
    train(path, out, 2, "--stop-after", "5")
    train(path, out, 3, "--stop-after", "10", "--set", "placement=minimum-cut")
    train(path, out, 2, "--set", "placement=by-modality")
    assert differences(result(tmp_path / "alone"), result(out)) == []
    assert yaml.safe_load((out / "job.yaml").read_text())["placement"] == "by-modality"
    run = RecordedRun.read(out)
    assert run.ranks == 2
    by_kind = {kind: set(run.rank_of[ids].tolist()) for kind, ids in run.listed().items()}
    assert by_kind == {"top": {0}, "bottom": {0}, "top+bottom": {1}}
