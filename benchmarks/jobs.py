"""Test accuracy of ready jobs by kind of agent, `parse` beside `local`, mean over seeds; and of one seed on 3 ranks.

    PARSE_MPI_DATA=FOLDER .venv/bin/python benchmarks/jobs.py [--job NAME] [--seeds 3]

local has the same network, data and number of rounds, and no exchange. Every figure is that of the ensemble after the
last round. Prints rows for the table in docs/results.md; --job can be given several times, and is all jobs otherwise.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from real_runs import train  # noqa: E402

from parse_mpi.run.summary import evaluation  # noqa: E402
from parse_mpi.storage.metrics import read_metrics  # noqa: E402

LIMIT_S = 1800.0
NAMED_MODALITIES = 3  # of a kind; the agents of a larger one are told by their number


def accuracies(job, ranks, seed, method, folder):
    """Kind of agent -> test accuracy of each of its agents, in the order of the job; `all` comes last."""
    out = folder / f"{job}-{method}-{seed}-{ranks}"
    train(ROOT / "jobs" / f"{job}.yaml", out, ranks, "--set", f"seed={seed}", "--set", f"method.name={method}",
          limit_s=LIMIT_S)  # fmt: skip
    last = evaluation(read_metrics(out), -1, "test")
    kinds = dict.fromkeys(last.kinds.tolist())
    return {kind: last.of(kind, "ensemble") for kind in kinds} | {"all": last.of(None, "ensemble")}


def name_of(kind):
    modalities = kind.split("+")
    return kind if len(modalities) <= NAMED_MODALITIES else f"{len(modalities)} modalities"


def report(job, seeds, folder):
    """One row per kind: job, kind, agents, local, parse, and of seed 0 parse on 1 and on 3 ranks."""
    runs = {
        method: [accuracies(job, 1, seed, method, folder) for seed in range(seeds)] for method in ("local", "parse")
    }
    on_three = accuracies(job, 3, 0, "parse", folder)
    for kind, of_agents in on_three.items():
        local, parse = (np.mean([run[kind].mean() for run in runs[method]]) for method in ("local", "parse"))
        one, three = runs["parse"][0][kind].mean(), of_agents.mean()
        cells = (f"{local:.3f}", f"{parse:.3f}", f"{one:.3f}", f"{three:.3f}")
        print(f"| {job} | {name_of(kind)} | {len(of_agents)} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--job", action="append", help="a name in jobs/")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| job | agents | n | local | parse | seed 0, 1 rank | seed 0, 3 ranks |")
    print("|---|---|---|---|---|---|---|")
    for job in options.job or sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml")):
        with tempfile.TemporaryDirectory() as folder:
            report(job, options.seeds, Path(folder))


if __name__ == "__main__":
    main()
