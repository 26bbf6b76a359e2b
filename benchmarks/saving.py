"""What checkpoints cost a training: ten rounds with one in their middle beside ten without, in turn.

    OMP_NUM_THREADS=1 .venv/bin/mpiexec -n 2 .venv/bin/python benchmarks/saving.py [DIRECTORY]

The quickstart job with encoders of several widths. pause: how long training stands still for a checkpoint. in all: what
it adds to ten rounds, so also what its thread takes from training meanwhile, and the metrics that are written with it.
Medians over blocks of ten rounds, of rank 0.
"""

import shutil
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

from small_jobs import trainer_of  # noqa: E402

from parse_mpi.exchange.world import World  # noqa: E402
from parse_mpi.run.phases import PHASES  # noqa: E402

WIDTHS = (256, 1024, 4096)
ROUNDS, BLOCKS, WARM_UP = 10, 9, 2


def block(trainer, first, saves):
    """Milliseconds of ten rounds, and for how many of them training stood still; then what is written is waited for."""
    trainer.timer.take()
    start = time.perf_counter()
    for k in range(first, first + ROUNDS):
        losses, _ = trainer.train_round(k)
        trainer.recorder.add_round(k + 1, trainer.now, losses, np.zeros(len(PHASES)), trainer.travel_s)
        if saves and k == first + ROUNDS // 2:
            trainer.save(k + 1, checkpoint=True)
    taken, stood_still = time.perf_counter() - start, trainer.timer.take()[PHASES.index("checkpoint")]
    trainer.settle()
    return 1e3 * taken, 1e3 * stood_still


def measure(world, folder, width):
    """Bytes of a checkpoint, and with and without one: [blocks, (block, pause)] in milliseconds."""
    encoder = f"encoder={{kind: mlp, hidden: [{width}]}}"
    trainers = {
        saves: trainer_of(ROOT / "jobs" / "quickstart.yaml", folder, encoder, world=world)[0] for saves in (True, False)
    }
    blocks = {saves: [] for saves in trainers}
    for k in range(WARM_UP + BLOCKS):
        for saves, trainer in trainers.items():
            world.barrier()
            blocks[saves].append(block(trainer, k * ROUNDS, saves))
    for trainer in trainers.values():
        trainer.close()
    newest = max((folder / "checkpoints").iterdir())
    return sum(path.stat().st_size for path in newest.iterdir()), {s: b[WARM_UP:] for s, b in blocks.items()}


def main():
    torch.set_num_threads(1)
    world = World(MPI.COMM_WORLD)
    if world.rank == 0:
        print("| width | a checkpoint, MB | a round, ms | pause, ms | in all, ms |\n|---|---|---|---|---|")
    for width in WIDTHS:
        made = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None) if world.rank == 0 else ""
        folder = Path(world.broadcast_json(made))
        size_bytes, blocks = measure(world, folder, width)
        if world.rank == 0:
            shutil.rmtree(folder)
            (saving, pause), (plain, _) = (map(statistics.median, zip(*blocks[s], strict=True)) for s in (True, False))
            cells = (f"{size_bytes / 1e6:.1f}", f"{plain / ROUNDS:.1f}", f"{pause:.1f}", f"{saving - plain:.0f}")
            print(f"| {width} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
