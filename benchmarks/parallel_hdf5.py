"""Seconds to write 256 MB from all ranks: one file by parallel HDF5, and a shard a rank. In turn, medians.

    mpirun -n 4 PYTHON benchmarks/parallel_hdf5.py [DIRECTORY]

PYTHON needs an h5py with MPI, mpi4py, NumPy and pydantic (docs/cluster.md, section 8).
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from parse_mpi.exchange.world import World
from parse_mpi.storage.parallel import require_parallel_hdf5, write_single
from parse_mpi.storage.shard import AgentArray, write_shard

REPEATS = 5
AGENTS, COLUMNS, SLICES = 64, 125_000, 8


def main():
    world = World.connect()
    require_parallel_hdf5(world)
    agents = np.array_split(np.arange(AGENTS), world.size)[world.rank]
    draw = np.random.default_rng(world.rank)
    rows = [
        AgentArray(f"slices/{k}/parameters", agents, draw.random((len(agents), COLUMNS), np.float32))
        for k in range(SLICES)
    ]
    work = {
        "a shard a rank": lambda folder: write_shard(folder, world.rank, 0, rows),
        "one file": lambda folder: write_single(world, folder, 0, rows),
    }
    times = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, write in work.items():
            with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as own:
                folder = Path(world.broadcast_json(own))
                world.barrier()
                start = time.perf_counter()
                assert not write(folder).failure
                world.barrier()
                times[name].append(time.perf_counter() - start)
    if world.rank == 0:
        for name, taken in times.items():
            print(f"{name:<16} {statistics.median(taken):5.2f} s")


if __name__ == "__main__":
    main()
