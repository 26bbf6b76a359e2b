"""What `parse-mpi doctor` tries in a directory: the promises of a file system that checkpoints rest on.

What is flushed is on disk, a rename replaces a file in one step, and of many that create one name only one succeeds.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path

from parse_mpi.storage.write import sync_directory

FLUSHED_BYTES = 1 << 20
FLUSHES = 5
RENAMES = 200
RENAMED_BYTES = 1 << 14
MOUNTS = Path("/proc/self/mounts")


def nearest_directory(path: Path) -> Path:
    """The path, or what there is of it: a run makes its directory itself."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def file_system(folder: Path) -> str:
    """Its type, for example `ext4`, `nfs4` or `lustre`; "" where the system does not tell."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    resolved = folder.resolve()
    # The last mount at a place hides those before it.
    around = [(len(place), k, kind) for k, (place, kind) in enumerate(mounts) if resolved.is_relative_to(place)]
    return max(around)[2] if around else ""


def flush_seconds(folder: Path, name: str) -> float:
    """Median seconds until a new file of 1 MB and its name are on disk. Raises OSError where they can't be flushed."""
    seconds = []
    for k in range(FLUSHES):
        start = time.perf_counter()
        with open(folder / f"{name}-{k}", "xb", buffering=0) as file:
            file.write(bytes(FLUSHED_BYTES))
            os.fsync(file.fileno())
        sync_directory(folder)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def torn_renames(folder: Path, name: str) -> int:
    """How often a reader saw something else than one whole file under a name that files are renamed to. Raises OSError
    where they can't be."""
    path, done, torn = folder / name, threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                content = path.read_bytes()
            except OSError:
                content = b""
            if len(content) != RENAMED_BYTES or len(set(content)) != 1:
                torn.append(content)

    def replace(k: int) -> None:
        new = path.with_suffix(".new")
        new.write_bytes(bytes([k % 256]) * RENAMED_BYTES)
        os.rename(new, path)

    replace(0)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        for k in range(RENAMES):
            replace(k)
    finally:
        done.set()
        reader.join()
    return len(torn)


def create_alone(path: Path) -> bool:
    """Whether this call created the file: O_EXCL, which the owner of a run directory is decided by."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True
