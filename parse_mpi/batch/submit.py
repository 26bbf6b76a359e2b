"""Handing a batch script to Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

from parse_mpi.batch.script import INDEX
from parse_mpi.errors import JobError, LaunchError, Problem
from parse_mpi.storage.write import storage_errors
from parse_mpi.yamlfile import read_yaml


def what_is(path: Path) -> Literal["job", "study", "scaling"]:
    """Whether a file is a job, or a study of `compare` or `scaling`. Raises JobError where there is none."""
    if not path.is_file():
        raise JobError([Problem(str(path), "there is no such file", "jobs/ holds ready jobs, jobs/studies studies")])
    value = read_yaml(path).value
    keys = value if isinstance(value, dict) else {}
    return "study" if "cells" in keys else "scaling" if "curves" in keys else "job"


def submit(script: str, out: str) -> str:
    """Submit a script whose run directory is `out`; returns a line that tells the job's number and where its log lies.

    Slurm makes no directory for the log, so that it is made here. Raises LaunchError where sbatch is not there or
    refuses, StorageError where the directory can't be made.
    """
    folder = Path(os.path.abspath(out.replace(INDEX, "0"))).parent
    with storage_errors(folder, "can't be made"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, text=True, capture_output=True, check=False)
    except FileNotFoundError:
        raise LaunchError("there is no sbatch here: submit on a node of a Slurm cluster") from None
    if done.returncode:
        raise LaunchError(
            f"sbatch refused the script: {done.stderr.strip()}\nTo read it: the same command without --submit"
        )
    number = done.stdout.strip().partition(";")[0]
    return f"submitted job {number}; it writes to {os.path.abspath(out)}.slurm-{number}.log; squeue -j {number}\n"
