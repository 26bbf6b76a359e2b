"""What Slurm tells a launch about the job that it is part of. Imports nothing heavy: `status` asks here, too."""

from __future__ import annotations

from collections.abc import Mapping


def slurm_restarts(environment: Mapping[str, str]) -> int:
    """How often the Slurm job that this process belongs to has been requeued; 0 outside Slurm."""
    count = environment.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdecimal() else 0


def slurm_job(environment: Mapping[str, str]) -> dict[str, str | int]:
    """Which job that is, with the task of an array, and how often it has been requeued; nothing outside Slurm."""
    if not (number := environment.get("SLURM_JOB_ID")):
        return {}
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        number = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    return {"slurm_job": number, "slurm_restarts": slurm_restarts(environment)}
