"""Seconds to write 200 MB with the one write primitive, to verify them, and plain h5py with fsync in the same run.

    .venv/bin/python benchmarks/checkpoint.py [DIRECTORY]

hashing: three passes of SHA-256 over as many bytes, which the write primitive cannot do without. In turn, medians.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from parse_mpi.storage.write import sha256_of_file, write_hdf5

REPEATS = 7


def write_plain(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def hash_three_times(arrays):
    for _ in range(3):
        for array in arrays.values():
            hashlib.sha256(array).digest()


def main():
    draw = np.random.default_rng(0)
    arrays = {f"slices/{k}/parameters": draw.random((50, 125_000), np.float32) for k in range(8)}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        ours, plain = Path(folder) / "ours.h5", Path(folder) / "plain.h5"
        work = {
            "write_hdf5": lambda: write_hdf5(ours, arrays, {}),
            "plain h5py + fsync": lambda: write_plain(plain, arrays),
            "hashing alone": lambda: hash_three_times(arrays),
            "verify": lambda: sha256_of_file(ours),
        }
        times = {name: [] for name in work}
        for _ in range(REPEATS):
            for name, run in work.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    for name, taken in times.items():
        print(f"{name:<20} {statistics.median(taken):5.2f} s")


if __name__ == "__main__":
    main()
