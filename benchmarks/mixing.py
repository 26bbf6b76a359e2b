"""Milliseconds to mix 15 local rows of 40,000 float32 columns, against whole rows at a time and one dense product.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/mixing.py

blocks: add_differences as it is. whole: the same sums without blocks of columns. dense: W @ X in one matrix product,
which is faster on dense graphs but keeps neither the order of sums nor an exact fixed point. In turn, medians.
"""

import statistics
import time

import numpy as np
import torch

from parse_mpi.exchange import mixing
from parse_mpi.exchange.routing import make_route
from parse_mpi.job import Topology
from parse_mpi.topology.slice_graph import slice_graph

AGENTS, COLUMNS, REPEATS = 15, 40_000, 50


def main():
    torch.set_num_threads(1)
    block_bytes = dict(mixing.BLOCK_BYTES)
    print(f"{'graph':<10} {'blocks':>8} {'whole':>8} {'dense':>8}   (ms)")
    for kind in ("ring", "complete"):
        matrix = slice_graph("all agents", [range(AGENTS)], Topology(kind=kind), 0, AGENTS).at(0)
        route = make_route(matrix, np.zeros(AGENTS, np.int64), 0, range(AGENTS))
        sums = mixing.DeviceRoute.of(route, torch.float32, torch.device("cpu")).interior
        values, dense = torch.randn(AGENTS, COLUMNS), torch.from_numpy(matrix.dense()).float()
        change = torch.empty_like(values)
        times = {"blocks": [], "whole": [], "dense": []}
        for _ in range(REPEATS):
            for name, taken in times.items():
                mixing.BLOCK_BYTES["cpu"] = block_bytes["cpu"] if name == "blocks" else values.nbytes
                start = time.perf_counter()
                if name == "dense":
                    torch.mm(dense, values, out=change)
                else:
                    mixing.add_differences(values, change, sums)
                taken.append(1e3 * (time.perf_counter() - start))
        print(f"{kind:<10} " + " ".join(f"{statistics.median(taken):>8.2f}" for taken in times.values()))


if __name__ == "__main__":
    main()
