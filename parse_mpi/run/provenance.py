"""provenance.yaml: for every launch of a run, what was started, where, with which versions and from which commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import parse_mpi
from parse_mpi.exchange.devices import Seat
from parse_mpi.exchange.library import mpi_library
from parse_mpi.slurm import slurm_job
from parse_mpi.storage.write import storage_errors, write_text

PACKAGES = ("torch", "numpy", "mpi4py", "h5py")


def versions() -> dict[str, str]:
    """What a result may depend on: Python, packages, MPI library."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {
        "parse_mpi": parse_mpi.__version__,
        "python": platform.python_version(),
        **packages,
        "mpi": mpi_library(),
    }


def add_launch(path: Path, command: Sequence[str], seats: Sequence[Seat], first_round: int, seed: int) -> None:
    """Append this launch to the file. Raises StorageError.

    A file that can't be understood moves aside to provenance.yaml.broken: a record must not stop a run, nor be lost.
    """
    launch = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "first_round": first_round,
        **slurm_job(os.environ),
        "seed": seed,
        "commit": source_commit(),
        "versions": versions(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "ranks": [asdict(seat) for seat in seats],
    }
    write_text(path, yaml.safe_dump([*_launches(path), launch], sort_keys=False))


class _Loader(yaml.SafeLoader):
    """Takes no merge keys: a few lines of them can say more than any memory holds."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` as it is, a key that means nothing."""


def _launches(path: Path) -> list[Any]:
    """What the file holds; nothing, and no file, where it was broken."""
    if not path.exists():
        return []
    with storage_errors(path, "can't be read or moved aside"):
        try:
            launches = yaml.load(path.read_text("utf-8"), _Loader)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no UTF-8, or a date that does not exist
            launches = None
        if isinstance(launches, list):
            return launches
        path.rename(_first_free(path.with_name(f"{path.name}.broken")))
        return []


def _first_free(path: Path) -> Path:
    """`path`, or where that is taken `path-2`, `path-3`, ..."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def source_commit() -> str:
    """Commit of the source tree that runs, with `-dirty` where files differ; "" for an installed package."""
    root = Path(parse_mpi.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()
