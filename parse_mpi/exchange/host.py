"""What this host lends to this process. Needs neither MPI nor torch: `doctor` asks where both are missing."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(usable_cpus())


def usable_cpus() -> list[int]:
    """The numbers of the cores that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def peak_bytes() -> int:
    """The most memory that was resident at a time in this process so far; 0 where the system does not tell.

    Not getrusage, whose peak includes that of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((1024 * int(words[1]) for words in lines), 0)
