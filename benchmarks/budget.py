"""Test accuracy of the quickstart job after 200 rounds when a link may carry only a part of the row in each round.

    OMP_NUM_THREADS=1 .venv/bin/mpiexec -n 2 .venv/bin/python benchmarks/budget.py [ROUNDS]

100 % are all slices of a link between two agents with both modalities. Mean and worst agent of the ensemble, the
largest consensus distance of a slice, and MB that all agents sent. `local` sends nothing.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_jobs import trainer_of  # noqa: E402

from parse_mpi.exchange.world import World  # noqa: E402
from parse_mpi.run.consensus import consensus_distances  # noqa: E402
from parse_mpi.run.evaluation import SPLITS  # noqa: E402
from parse_mpi.run.preemption import StopRequest  # noqa: E402
from parse_mpi.storage.metrics import read_metrics  # noqa: E402
from parse_mpi.storage.rundir import RunDirectory  # noqa: E402

JOB = ROOT / "jobs" / "quickstart.yaml"
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.01)
ROUNDS = 200


def train(world, folder, rounds, *overrides):
    """Accuracy [A] on the test split, the largest consensus distance, and bytes sent, after the run has ended."""
    run = RunDirectory(folder)
    if world.rank == 0:
        run.create()
    world.barrier()
    ends = [f"train.rounds={rounds}", f"evaluate.every={rounds}", f"checkpoint.every={rounds}"]
    trainer, plan, _ = trainer_of(JOB, folder, *ends, *overrides, world=world)
    trainer.train(0, rounds, StopRequest())
    group = trainer.now.group
    accuracy = world.gather_agents(group.ids, trainer.now.evaluator.accuracy())[:, SPLITS.index("test"), 0, 0]
    furthest = max(consensus_distances(world, plan, group).values())
    trainer.close()
    sent = int(read_metrics(folder)["rounds/payload_bytes"].sum()) if world.rank == 0 else 0
    return accuracy, furthest, sent


def main():
    torch.set_num_threads(1)
    world = World(MPI.COMM_WORLD)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    with tempfile.TemporaryDirectory() as mine:
        shared = Path(world.broadcast_json(mine))
        _, plan, _ = trainer_of(JOB, shared, world=world)
        row_bytes = sum(plan.row_bytes(name) for name in plan.graphs)
        runs = {"whole rows": (), "local": ("method.name=local",)}
        for share in SHARES:
            for turns in ("rotation", "priority"):
                budget = (f"exchange.budget_bytes_per_link={round(share * row_bytes)}", f"exchange.turns={turns}")
                runs[f"{share:.0%} {turns}"] = budget
        if world.rank == 0:
            print(f"{rounds} rounds; 100 % = {row_bytes} bytes a link and round")
            print(f"{'budget':<16} {'mean':>6} {'worst':>6} {'distance':>9} {'MB sent':>8}")
        for k, (name, overrides) in enumerate(runs.items()):
            accuracy, furthest, sent = train(world, shared / str(k), rounds, *overrides)
            if world.rank == 0:
                line = f"{name:<16} {np.mean(accuracy):>6.3f} {np.min(accuracy):>6.3f} {furthest:>9.4f}"
                print(f"{line} {sent / 1e6:>8.1f}", flush=True)
        world.barrier()


if __name__ == "__main__":
    main()
