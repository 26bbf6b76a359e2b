"""What travels between ranks for the heads of Sheaf-DMFL: a message for each link that crosses, and no row."""

from real_runs import train
from small_jobs import write_job

from parse_mpi.data.sources import load_dataset
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.storage.metrics import read_metrics

MESSAGE_BYTES = 3 * 4
ROUNDS = 3


def test_messages_are_counted_by_link(tmp_path):
    method = {"name": "sheaf-dmfl", "edge_width": 3}
    path = write_job(tmp_path, {"method": method, "train": {"rounds": ROUNDS}, "topology": {"kind": "random-gossip"}})
    train(path, tmp_path / "on-3", 3)
    jobfile, metrics = load_job(path), read_metrics(tmp_path / "on-3")
    plan = make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), 3)
    names = list(metrics.attributes["rounds/payload_bytes"]["slice"])
    heads = [k for k, name in enumerate(names) if name.startswith("label_head")]
    assert len(heads) == 3
    for k in range(ROUNDS):
        links = plan.graphs["all agents"].at(k).links()
        crossing = plan.rank_of[links[:, 0]] != plan.rank_of[links[:, 1]]
        assert metrics["rounds/payload_bytes"][k, heads].sum() == len(links) * MESSAGE_BYTES
        assert metrics["ranks/sent_bytes"][k][:, heads].sum() == crossing.sum() * MESSAGE_BYTES
