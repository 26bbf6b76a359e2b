"""Seconds of `parse-mpi plan` and `check`, started as a user starts them, for 30 and for 1,000 agents.

.venv/bin/python benchmarks/plan.py
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

JOB = Path(__file__).parent.parent / "jobs" / "quickstart.yaml"
THOUSAND = ["agents.0.count=330", "agents.1.count=330", "agents.2.count=340", "data.partition.min_per_agent=1"]
REPEATS = 5


def seconds(*arguments):
    """Median wall time of a command."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "parse_mpi", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    many = [part for override in THOUSAND for part in ("--set", override)]
    print(f"check, 30 agents                        {seconds('check', JOB):6.2f} s")
    print(f"plan, 30 agents, 2 ranks                {seconds('plan', JOB, '-n', 2):6.2f} s")
    for kind in ("ring", "random-gossip", "complete"):
        took = seconds("plan", JOB, "-n", 8, *many, "--set", f"topology.kind={kind}" if kind != "ring" else "seed=0")
        print(f"plan, 1,000 agents, 8 ranks, {kind:<13} {took:4.2f} s")


if __name__ == "__main__":
    main()
