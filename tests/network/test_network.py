"""Ranks on several hosts, which are network namespaces: TCP is all that they have between them."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, child_environment, run
from namespaces import OVER_TCP, Answer, Network, ask, run_points, why_not
from real_runs import command, differences, result, train
from scaling_cases import write_scaling_study
from small_jobs import write_job

from parse_mpi.scaling.costmodel import fit, samples_of
from parse_mpi.scaling.runner import ScalingStudy
from parse_mpi.scaling.scalingfile import load_scaling
from parse_mpi.storage.metrics import read_metrics

REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)

LIMIT_S = 240.0
DELAY_S = 0.02
RATE_MBIT = 100.0
# A payload of known size in few bytes and in many: the second tells what a byte costs, the first what a message does.
CALIBRATION = [{"messages": 40, "message_bytes": 200}, {"messages": 10, "message_bytes": 1 << 20}]

OWNER = """
import sys, time
from pathlib import Path
from namespaces import Network

with Network(2, Path(sys.argv[1]), delay_s=0.001) as network:
    print(*network.pids(), flush=True)
    time.sleep(60)
"""


def rounds(row_mb: float, order: str = "adapt-then-combine", local_steps: int = 1, count: int = 6) -> dict[str, object]:
    return {"row_mb": row_mb, "order": order, "local_steps": local_steps, "rounds": count}


def on_the_wire(calibration: list[Answer], sent_bytes: int, messages: int) -> float:
    """Bytes on the wire of all hosts that a payload should take, by what known ones took."""
    known = np.array([[answer["sent_bytes"].sum(), answer["messages"].sum()] for answer in calibration])
    per_byte, per_message = np.linalg.solve(known, [answer["wire_bytes"].sum() for answer in calibration])
    assert 1.0 < per_byte < 1.2
    assert 0 < per_message < 2000
    return per_byte * sent_bytes + per_message * messages


@pytest.mark.parametrize(("hosts", "ranks"), [(2, 4), (3, 3)])
def test_exact_gives_the_same_bits_across_hosts(tmp_path: Path, hosts: int, ranks: int) -> None:
    job = write_job(tmp_path, {"mode": "exact", "topology": {"kind": "random-gossip"}})
    train(job, tmp_path / "alone", 1)
    with Network(hosts, tmp_path) as network:
        across = command(job, tmp_path / "across")
        outcome = run(ranks, across, tmp_path / "logs", LIMIT_S, OVER_TCP, network.mpiexec)
        assert outcome.code == 0, outcome
        crossed = min(network.sent_bytes())
    assert differences(result(tmp_path / "alone"), result(tmp_path / "across")) == []
    log = (tmp_path / "across" / "log" / "rank-0000.log").read_text()
    for rank in range(ranks):
        assert f"rank   {rank}  node{rank % hosts}  " in log
    assert crossed > read_metrics(tmp_path / "across")["ranks/sent_bytes"].sum(axis=(0, 2)).min() > 0


@pytest.mark.parametrize("delay_s", [0.0, DELAY_S])
def test_counted_bytes_are_the_bytes_on_the_wire(tmp_path: Path, delay_s: float) -> None:
    """Rows of 10 KB, where headers weigh, and of 1 MB."""
    with Network(2, tmp_path, delay_s) as network:
        *calibration, small, large = ask(network, [*CALIBRATION, rounds(0.01), rounds(1.0)], tmp_path / "log", LIMIT_S)
    for answer in (small, large):
        expected = on_the_wire(calibration, answer["sent_bytes"].sum(), answer["messages"].sum())
        assert answer["wire_bytes"].sum() == pytest.approx(expected, rel=0.05)


def test_a_whole_run_puts_on_the_wire_what_its_metrics_say(tmp_path: Path) -> None:
    """Seen from outside: the start, the ranks' agreement, one evaluation and one checkpoint add little to it."""
    changes = {
        "agents": [{"modalities": ["top"], "count": 4}],
        "encoder": {"hidden": [512, 512]},
        "train": {"rounds": 60},
        "evaluate": {"every": 60},
        "checkpoint": {"every": 60},
    }
    job = write_job(tmp_path, changes)
    with Network(2, tmp_path) as network:
        calibration = ask(network, CALIBRATION, tmp_path / "log", LIMIT_S)
        before = sum(network.sent_bytes())
        outcome = run(2, command(job, tmp_path / "run"), tmp_path / "logs", LIMIT_S, OVER_TCP, network.mpiexec)
        assert outcome.code == 0, outcome
        wire_bytes = sum(network.sent_bytes()) - before
    sent_bytes = read_metrics(tmp_path / "run")["ranks/sent_bytes"].sum()
    assert sent_bytes > 200e6
    assert wire_bytes == pytest.approx(on_the_wire(calibration, sent_bytes, 2 * 60), rel=0.05)


def test_latency_is_waited_for_and_hidden_by_local_steps(tmp_path: Path) -> None:
    questions = [rounds(0.1, order, 20, 9) for order in ("adapt-then-combine", "consensus")]
    with Network(2, tmp_path, DELAY_S) as network:
        sent_after, sent_before = ask(network, questions, tmp_path / "log", LIMIT_S)
    for answer in (sent_after, sent_before):
        # Rows of the rank that is later take as long as a packet does, at the least.
        assert answer["travel_s"].max(axis=0).min() >= DELAY_S
        assert np.median(answer["local_steps_s"]) > 2 * DELAY_S
    waited, hidden = (np.median(answer["wait_s"].max(axis=0)) for answer in (sent_after, sent_before))
    assert waited > 0.9 * DELAY_S
    assert hidden < 0.5 * waited


def test_bandwidth_limits_the_exchange(tmp_path: Path) -> None:
    with Network(2, tmp_path, rate_mbit=RATE_MBIT) as network:
        (answer,) = ask(network, [rounds(1.0)], tmp_path / "log", LIMIT_S)
    least_s = 8e-6 * answer["sent_bytes"].max() / 6 / RATE_MBIT
    assert 0.9 * least_s < np.median(answer["travel_s"].max(axis=0)) < 10 * least_s


def test_the_cost_model_finds_what_was_set_between_hosts(tmp_path: Path) -> None:
    """A scaling study over two hosts: a message and a byte that cross have constants of their own."""
    curves = {"strong": None}
    for agents in (3, 24):
        curves[f"apart-{agents}"] = {"kind": "strong", "ranks": [2], "agents": agents, "ranks_per_node": 1}
    job = {"encoder": {"hidden": [64]}, "data": {"partition": {"min_per_agent": 1}}}
    path = write_scaling_study(tmp_path, {"curves": curves, "rounds": 4}, job)
    study = ScalingStudy(path, tmp_path / "out")
    with Network(2, tmp_path, DELAY_S, RATE_MBIT) as network:
        run_points(study, network, tmp_path / "logs", LIMIT_S)
    assert study.collect().failed == {}
    scaling = load_scaling(tmp_path / "out" / "scaling.h5")
    for measured in (launch.result for launch in scaling.launches):
        assert set(measured.host) == {"node0", "node1"}
        np.testing.assert_allclose(measured.loads.bytes_between, measured.sent_bytes.mean(0))
        assert measured.loads.bytes_within.sum() == 0
    samples = samples_of(scaling)
    model = fit(samples)
    assert model.network == "fitted"
    a_message_s, a_byte_s = (model.constants["exchange", name] for name in ("messages_between", "bytes_between"))
    messages = samples[0].demand.features["messages_between"]
    assert messages * a_message_s > 0.5 * DELAY_S  # sent at once, so that their latencies are not a sum
    assert 0.3 * RATE_MBIT < 8e-6 / a_byte_s < 3 * RATE_MBIT


def test_the_doctor_sees_hosts_and_measures_between_them(tmp_path: Path) -> None:
    doctor = [sys.executable, "-m", "parse_mpi", "doctor", "--out", str(tmp_path)]
    with Network(2, tmp_path, DELAY_S) as network:
        outcome = run(3, doctor, tmp_path / "log", LIMIT_S, OVER_TCP, network.mpiexec)
    assert outcome.code == 0, outcome
    said = outcome.logs[0]
    assert re.search(r"ok   links +ranks 0 and 2, on one host: ", said)
    between = re.search(r"note links +ranks 0 and 1, on two hosts: ([0-9.]+) µs,.* looks like Ethernet", said)
    assert between
    assert 1e-6 * float(between[1]) > DELAY_S
    assert re.search(r"ok   binding +node1: rank 1 on core", said)
    assert re.search(r" binding +node0: (2 ranks, not bound|ranks share|cores of their own)", said)
    assert re.search(r"ok   directory .* 3 ranks see the same", said)


def test_nothing_is_left_of_a_network_whose_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_a_network_that_can_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    network = Network(2, tmp_path / "missing")
    with pytest.raises(FileNotFoundError), network:
        pass
    assert len(network.pids()) == 3
    assert not any(alive(pid) for pid in network.pids())


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
