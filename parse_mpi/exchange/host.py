"""What this host lends to this process. Needs neither MPI nor torch: `doctor` asks where both are missing."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> list[int]:
    """Numbers of the cores that this process may run on, ascending; from 0 on where the system does not bind."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(usable_cores()))
