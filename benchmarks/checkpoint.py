"""What a checkpoint of 200 MB costs: parse_mpi, plain h5py and torch.distributed.checkpoint, in one run.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/checkpoint.py [DIRECTORY]

Each way writes the same 8 slices of 50 agents again and again, in a process of its own; the ways take turns. Medians.

seconds: until all is on disk. pause: how long the thread that trains is held. on disk: of one checkpoint. memory: the
peak beyond the state itself, over all saves. Ways with "only" are single steps of the work, what no other way can beat.
"""

import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from mpi4py import MPI
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from parse_mpi.exchange.world import World
from parse_mpi.run.snapshot import Snapshot
from parse_mpi.storage.saver import Saver
from parse_mpi.storage.write import sha256_of_file

SLICES, AGENTS, COLUMNS = 8, 50, 125_000
REPEATS, WARM_UP, KEPT = 7, 2, 2

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is measured


def make_state():
    draw = torch.Generator().manual_seed(0)
    return {f"slice {k}": torch.randn(AGENTS, COLUMNS, generator=draw) for k in range(SLICES)}


def saver(state, folder):
    ids = np.arange(AGENTS)
    rows = {name: SimpleNamespace(agents=ids, matrices=lambda m=m: {"parameters": m}) for name, m in state.items()}
    no_memory = SimpleNamespace(state={})
    group = SimpleNamespace(slices=rows, ids=ids, steps=0, device=torch.device("cpu"), alignment=no_memory)
    snapshot, saver = Snapshot(group), Saver(World(MPI.COMM_SELF), folder, KEPT)

    def save(k):
        saver.begin(k, snapshot.take, {}, lambda: None)
        record = None
        while record is None:
            if saver.unfinished:
                time.sleep(1e-3)  # as long as training goes on
            else:
                record = saver.advance()
        assert record.committed, record.reason
        return folder / "checkpoints" / f"round-{k:06d}", record.pause_seconds

    return save


def plain_h5py(state, folder):
    def save(k):
        path = folder / f"{k}.h5"
        with h5py.File(path, "w") as file:
            for name, values in state.items():
                file[name] = values.numpy()
        flush(path)
        return path, None

    return save


def dcp_save(state, folder):
    def save(k):
        path = folder / str(k)
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
        return path, None

    return save


def dcp_async_save(state, folder):
    stager = DefaultStager(StagingOptions(False, False, False, False))  # kept, so that it keeps its copy's memory

    def save(k):
        path, start = folder / str(k), time.perf_counter()
        written = dcp.async_save(state, storage_writer=dcp.FileSystemWriter(path), async_stager=stager, no_dist=True)
        pause = time.perf_counter() - start
        written.result()
        return path, pause

    return save


def only_copy(state, folder):
    copies = {name: values.clone() for name, values in state.items()}

    def save(k):
        for name, values in state.items():
            copies[name].copy_(values)

    return save


def only_write(state, folder):
    def save(k):
        path = folder / f"{k}.bin"
        with open(path, "wb", buffering=0) as file:
            for values in state.values():
                file.write(values.numpy().data)
        flush(path)
        return path, None

    return save


def only_hash(state, folder):
    def save(k):
        for values in state.values():
            hashlib.sha256(values.numpy()).digest()

    return save


def only_verify(state, folder):
    path, _ = only_write(state, folder)(0)
    return lambda k: sha256_of_file(path) and None


WAYS = {
    "parse_mpi": saver,
    "h5py, one file, fsync": plain_h5py,
    "torch.distributed.checkpoint.save": dcp_save,
    "the same, async_save": dcp_async_save,
    "only a copy in memory": only_copy,
    "only write and fsync": only_write,
    "only SHA-256, one pass": only_hash,
    "only reading back and SHA-256": only_verify,
}


class Process:
    """One way in this process: its state, and how it saves it."""

    def __init__(self, way, folder):
        self.state, self.folder = make_state(), Path(folder)
        self.folder.mkdir()
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory starts from here
        self.before = resident("VmRSS")
        self.save = WAYS[way](self.state, self.folder)
        self.older = []

    def measure(self, k):
        """(seconds, seconds of pause, bytes on disk, bytes of the peak beyond the state)."""
        start = time.perf_counter()
        path, pause = self.save(k) or (None, None)
        seconds = time.perf_counter() - start
        size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file()) if path else 0
        self.older += [path] if path else []
        for old in self.older[:-KEPT]:  # the saver has removed its own
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
        return seconds, seconds if pause is None else pause, size, resident("VmHWM") - self.before


def flush(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def start(way, folder):
    global process
    process = Process(way, folder)


def measure(k):
    return process.measure(k)


def main():
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        pools = {
            way: ProcessPoolExecutor(1, get_context("spawn"), start, (way, Path(folder) / str(k)))
            for k, way in enumerate(WAYS)
        }
        found = {way: [] for way in WAYS}
        for k in range(1, WARM_UP + REPEATS + 1):
            for way, pool in pools.items():
                found[way].append(pool.submit(measure, k).result())
        for pool in pools.values():
            pool.shutdown()
    print("| way | seconds | pause, ms | on disk, MB | memory, MB |\n|---|---|---|---|---|")
    for way, measured in found.items():
        seconds, pause, size, memory = (statistics.median(column) for column in zip(*measured[WARM_UP:], strict=True))
        print(f"| {way} | {seconds:.2f} | {1e3 * pause:.0f} | {size / 1e6:.1f} | {memory / 1e6:.0f} |")


if __name__ == "__main__":
    main()
