"""How much memory this process may still take: what decides whether a data file is read as a whole."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """The least of what the machine has free, what its control groups allow and what the address space still holds."""
    return min([_free(proc), *_group_limits(proc, cgroups), *_address_space(proc)])


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
        used_pages = sum(int(line.split()[0]) for line in _lines(proc / "self" / "statm"))
        yield max(0, limit - used_pages * resource.getpagesize())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
