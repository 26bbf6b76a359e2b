"""Milliseconds per round of the quickstart job in one process: both engines, plain modules, and the floor.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/rounds.py

plain: a module and a torch optimiser per agent and dense mixing, the reference of the tests (tests/equivalence).
floor: only the matrix products of all layers, forward and backward, batched by kind of agent: no engine that computes
in float32 on this core can be faster. All are timed in turn in the same process; medians over rounds.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from plain_parse import PlainParse  # noqa: E402
from small_jobs import trainer_of  # noqa: E402

ROUNDS, WARM_UP = 20, 3


def floor(plan):
    """A function that does the matrix products of one local step of all agents, and nothing else."""
    batch, slices = plan.job.train.batch_size, plan.job.method.slices
    hidden = plan.job.encoder.hidden[0]
    work = []
    for kind in plan.kinds:
        agents = sum(agent.modalities == kind for agent in plan.agents)
        last = slices.unique + slices.redundant + (slices.synergistic if len(kind) > 1 else 0)
        for m in kind:
            inputs = int(torch.tensor(plan.shapes[m]).prod())
            work += [(agents, inputs, hidden), (agents, hidden, last), (agents, slices.unique, plan.class_count)]
    layers = [
        (torch.randn(a, batch, i), torch.randn(a, i, o), torch.randn(a, batch, o), first)
        for a, i, o in work
        for first in [i not in (hidden, slices.unique)]
    ]

    def step():
        for x, weight, gradient, first in layers:
            torch.bmm(x, weight)
            torch.bmm(x.transpose(1, 2), gradient)
            if not first:  # the inputs need no gradient
                torch.bmm(gradient, weight.transpose(1, 2))

    return step


def measure(count):
    """Median milliseconds a round by name, for `count` agents of each of the three kinds."""
    counts = [f"agents.{k}.count={count}" for k in range(3)] + ["data.partition.min_per_agent=1"]
    job = ROOT / "jobs" / "quickstart.yaml"
    with tempfile.TemporaryDirectory() as folder:
        stacked, plan, dataset = trainer_of(job, Path(folder), "engine=stacked", *counts)
        loop, _, _ = trainer_of(job, Path(folder), "engine=loop", *counts)
        plain, products = PlainParse(plan, dataset), floor(plan)
        rounds = {
            "stacked": lambda k: stacked.train_round(k),
            "loop": lambda k: loop.train_round(k),
            "plain": plain.round,
            "floor": lambda k: products(),
        }
        times = {name: [] for name in rounds}
        for k in range(WARM_UP + ROUNDS):
            for name, run in rounds.items():
                start = time.perf_counter()
                run(k)
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def main():
    torch.set_num_threads(1)
    names = ("stacked", "loop", "plain", "floor")
    print(f"{'agents':>6} {' '.join(f'{name:>9}' for name in names)}  plain/stacked  stacked/floor   (ms a round)")
    for count in (3, 10, 30, 100):
        ms = measure(count)
        ratios = f"{ms['plain'] / ms['stacked']:>14.1f} {ms['stacked'] / ms['floor']:>14.1f}"
        print(f"{3 * count:>6} {' '.join(f'{ms[name]:>9.2f}' for name in names)} {ratios}", flush=True)


if __name__ == "__main__":
    main()
