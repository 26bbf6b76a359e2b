"""Milliseconds a round with and without overlap of exchange and local steps, and how long each rank waits for rows.

    OMP_NUM_THREADS=1 .venv/bin/mpiexec -n 2 .venv/bin/python benchmarks/overlap.py [MB ...]

A ring of two agents a rank, each with about so many MB (1, 4 and 8 unless told). adapt-then-combine learns, then sends;
consensus sends, then learns, while nothing, polling between units of work, or a thread keeps rows moving. All variants
in turn, round by round; medians over rounds. round: the slowest rank. wait, travel: of every rank, until its rows were
there after it had nothing else to do, and after they were posted.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_jobs import make_trainer  # noqa: E402

from parse_mpi.exchange.world import World  # noqa: E402
from parse_mpi.run.phases import PHASES  # noqa: E402

ROUNDS, WARM_UP = 15, 3
VARIANTS = (
    ("adapt-then-combine", "none"),
    ("consensus", "none"),
    ("consensus", "poll"),
    ("consensus", "thread"),
)


def job(ranks, megabytes, order, progress):
    """Changes to the small job of the tests: two hidden layers so wide that a row has the size that was asked for."""
    width = round((megabytes * 1e6 / 4) ** 0.5 / 8) * 8
    return {
        "agents": [{"modalities": ["top"], "count": 2 * ranks}],
        "encoder": {"hidden": [width, width]},
        "train": {"order": order, "batch_size": 32, "local_steps": 2, "optimiser": {"lr": 0.01}},
        "exchange": {"progress": progress},
    }


def one_round(world, trainer, round_index):
    """Seconds of a round, of waiting, and of travelling, on this rank."""
    trainer.timer.take()
    world.barrier()
    start = time.perf_counter()
    trainer.train_round(round_index)
    seconds = time.perf_counter() - start
    return seconds, trainer.timer.take()[PHASES.index("wait")], trainer.travel_s


def measure(world, folder, megabytes):
    """Bytes of a row, and for every variant [rank, round, (round, wait, travel)] in milliseconds."""
    trainers = {}
    for variant in VARIANTS:
        trainer, plan, _ = make_trainer(folder, job(world.size, megabytes, *variant), world=world)
        trainer.choose_progress()
        trainers[variant] = trainer
    taken = {variant: [] for variant in VARIANTS}
    for r in range(WARM_UP + ROUNDS):
        for variant, trainer in trainers.items():
            taken[variant].append(one_round(world, trainer, r))
    row_bytes = sum(plan.row_bytes(name) for name in plan.graphs)
    mine = {variant: 1e3 * np.array(rows[WARM_UP:])[None] for variant, rows in taken.items()}
    for trainer in trainers.values():
        trainer.close()
    return row_bytes, {v: world.gather_agents(np.array([world.rank]), rows) for v, rows in mine.items()}


def main():
    torch.set_num_threads(1)
    world = World(MPI.COMM_WORLD)
    if world.rank == 0:
        head = f"{'row MB':>6}  {'order':<18} {'progress':<8} {'round ms':>8} {'ratio':>6}"
        print(f"{head}  {'wait ms by rank':<20} travel ms by rank")
    for megabytes in [float(text) for text in sys.argv[1:]] or [1.0, 4.0, 8.0]:
        with tempfile.TemporaryDirectory() as folder:
            row_bytes, taken = measure(world, Path(folder), megabytes)
        rounds = {variant: statistics.median(times[:, :, 0].max(0)) for variant, times in taken.items()}
        for (order, progress), times in taken.items() if world.rank == 0 else ():
            wait, travel = (" ".join(f"{x:6.2f}" for x in np.median(times[:, :, k], axis=1)) for k in (1, 2))
            ms = rounds[order, progress]
            line = f"{row_bytes / 1e6:>6.1f}  {order:<18} {progress:<8} {ms:>8.2f} {ms / rounds[VARIANTS[0]]:>6.2f}"
            print(f"{line}  {wait:<20} {travel}", flush=True)


if __name__ == "__main__":
    main()
