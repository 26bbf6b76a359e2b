"""The cost model on two hosts: what it finds that a message and a byte between them cost, against what was set.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/hosts.py [DIR]

Takes root and iproute2: the hosts are network namespaces (tests/namespaces.py), their network as fast as the kernel, or
with a bandwidth and a latency that are set. For each network jobs/scaling/hosts.yaml is measured into a folder of DIR
(runs/scaling-hosts), from where the same command goes on after a stop.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from namespaces import Network, run_points, why_not  # noqa: E402

from parse_mpi.scaling.costmodel import fit, hold_out, samples_of  # noqa: E402
from parse_mpi.scaling.runner import ScalingStudy  # noqa: E402
from parse_mpi.scaling.scalingfile import load_scaling  # noqa: E402

STUDY = ROOT / "jobs" / "scaling" / "hosts.yaml"
NETWORKS = {
    "fast": (0.0, None),
    "200mbit-5ms": (0.005, 200.0),
    "50mbit": (0.0, 50.0),
}  # delay_s, rate_mbit
LIMIT_S = 600.0


def measure(name, out):
    """The sizes of the study over a network, once all of them are measured."""
    delay_s, rate_mbit = NETWORKS[name]
    study = ScalingStudy(STUDY, out / name)
    with tempfile.TemporaryDirectory() as folder, Network(2, Path(folder), delay_s, rate_mbit) as network:
        run_points(study, network, Path(folder) / "logs", LIMIT_S)
    ended = study.collect()
    if ended.failed:
        sys.exit(f"{name}: {ended.failed}")
    return samples_of(load_scaling(ended.result))


def main():
    if reason := why_not():
        sys.exit(f"not here: {reason}")
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/scaling-hosts")
    found = {name: measure(name, out) for name in NETWORKS}
    print("| network | hosts | agents | ms a round | held out | error |")
    print("|---|---|---|---|---|---|")
    for name, samples in found.items():
        for sample, held in zip(samples, hold_out(samples), strict=True):
            ranks, nodes, agents = sample.key
            where = f"{nodes}" if ranks > 1 else "1, one rank"
            predicted = "– | –" if np.isnan(held.error) else f"{1e3 * held.predicted_s:.0f} | {100 * held.error:+.0f} %"
            print(f"| {name} | {where} | {agents} | {1e3 * sample.round_s:.0f} | {predicted} |")
    print("\n| network | ms a message between hosts | Mbit/s between hosts |")
    print("|---|---|---|")
    for name, samples in found.items():
        constants = fit(samples).constants
        message_s, byte_s = (constants["exchange", f"{what}_between"] for what in ("messages", "bytes"))
        print(f"| {name} | {1e3 * message_s:.2f} | {8e-6 / byte_s if byte_s else np.inf:.0f} |")


if __name__ == "__main__":
    main()
