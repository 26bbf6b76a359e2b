"""How much memory this process may still take, and a limit to what it takes meanwhile."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """The least of what the machine has free, what its control groups allow and what the address space still holds."""
    return min([_free(proc), *_group_limits(proc, cgroups), *_address_space(proc)])


@contextmanager
def memory_ceiling(further_bytes: int) -> Iterator[None]:
    """Have whatever asks for much memory inside the block fail: MemoryError, or OSError from libhdf5.

    The limit is that of the address space of the whole process, all threads together, so the block should be short.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = _used_bytes(PROC) + further_bytes
    resource.setrlimit(resource.RLIMIT_AS, (ceiling if soft == resource.RLIM_INFINITY else min(soft, ceiling), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _free(proc: Path) -> int:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """The memory limits of the process's control group and of those around it, as Slurm and containers set them."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from (int(limit) for limit in _lines(folder / name) if limit.isdecimal())


def _address_space(proc: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield max(0, limit - _used_bytes(proc))


def _used_bytes(proc: Path) -> int:
    """The address space that is taken."""
    return resource.getpagesize() * sum(int(line.split()[0]) for line in _lines(proc / "self" / "statm"))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
