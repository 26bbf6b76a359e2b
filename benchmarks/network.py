"""Milliseconds a round over networks of several bandwidths and latencies, by the order in which agents learn and send.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/network.py [HOSTS]

Takes root and iproute2: 2 hosts, unless told, are network namespaces (tests/namespaces.py), a rank on each, a ring of
two agents a rank, rows of 0.25 MB. adapt-then-combine learns, then sends; consensus sends, then learns, while a thread
keeps rows moving. Orders in turn; medians over rounds of the slowest rank. travel: from when rows are posted to when
they are there; wait: what of it a rank does nothing else in; ideal: bytes by the bandwidth, plus one latency; wire:
bytes on the wire for each counted.
"""

import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from namespaces import Network, ask, why_not  # noqa: E402

RATES_MBIT = (None, 200.0, 50.0)
DELAYS_MS = (0.0, 5.0, 20.0)
ORDERS = ("adapt-then-combine", "consensus")
ROW_MB = 0.25
LOCAL_STEPS, ROUNDS, TURNS = 8, 8, 3
LIMIT_S = 300.0


def line(rate_mbit, delay_ms, order, answers):
    names = ("round_s", "local_steps_s", "wait_s", "travel_s")
    slowest = {name: np.concatenate([answer[name].max(axis=0) for answer in answers]) for name in names}
    round_ms, steps_ms, wait_ms, travel_ms = (1e3 * np.median(slowest[name]) for name in names)
    row_bits = 8 * answers[0]["sent_bytes"].max() / ROUNDS
    ideal_ms = delay_ms + (1e-3 * row_bits / rate_mbit if rate_mbit else 0.0)
    wire_bytes, sent_bytes = (sum(answer[name].sum() for answer in answers) for name in ("wire_bytes", "sent_bytes"))
    rate = f"{rate_mbit:.0f}" if rate_mbit else "none"
    start = f"| {rate} | {delay_ms:.0f} | {order} | {round_ms:.0f} | {steps_ms:.0f}"
    return f"{start} | {wait_ms:.1f} | {travel_ms:.1f} | {ideal_ms:.1f} | {wire_bytes / sent_bytes:.3f} |"


def main():
    if reason := why_not():
        sys.exit(f"not here: {reason}")
    hosts = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print("| Mbit/s | one way, ms | order | round, ms | local steps | wait | travel | ideal | wire |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    one = {"row_mb": ROW_MB, "local_steps": LOCAL_STEPS, "rounds": ROUNDS}
    questions = [one | {"order": order} for order in TURNS * ORDERS]
    for delay_ms, rate_mbit in itertools.product(DELAYS_MS, RATES_MBIT):
        with (
            tempfile.TemporaryDirectory() as folder,
            Network(hosts, Path(folder), delay_ms / 1e3, rate_mbit) as network,
        ):
            answers = ask(network, questions, Path(folder) / "log", LIMIT_S)
        for k, order in enumerate(ORDERS):
            print(line(rate_mbit, delay_ms, order, answers[k :: len(ORDERS)]), flush=True)


if __name__ == "__main__":
    main()
