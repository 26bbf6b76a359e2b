"""Real runs from the command line, and everything they leave behind that must not depend on how they were launched."""

import sys
from pathlib import Path

import numpy as np
from launch import run

from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.metrics import read_metrics

LAYOUT_GROUPS = ("ranks/", "links/", "ending/", "placement/")  # times, and what depends on where agents are


def command(job: Path, out: Path, *arguments: str) -> list[str]:
    """parse-mpi run, as a console script would start it."""
    return [sys.executable, "-m", "parse_mpi", "run", str(job), "--out", str(out), *arguments]


def train(job: Path, out: Path, ranks: int, *arguments: str, limit_s: float = 120.0):
    """Run to its end and expect success; returns the outcome."""
    outcome = run(ranks, command(job, out, *arguments), out.parent / f"{out.name}-logs-{ranks}", limit_s)
    assert outcome.code == 0, outcome
    return outcome


def result(out: Path) -> dict[str, np.ndarray]:
    """Newest checkpoint and all metrics that must be the same on any launch."""
    checkpoint, rejected = load_newest(out)
    assert checkpoint is not None
    assert not rejected
    arrays = {name: checkpoint.read(name, checkpoint.agents_of(name)) for name in checkpoint.names()}
    metrics = read_metrics(out).arrays
    return arrays | {name: array for name, array in metrics.items() if not name.startswith(LAYOUT_GROUPS)}


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays that are not the same to the bit."""
    assert first.keys() == second.keys()
    return [
        name
        for name, array in first.items()
        if (array.shape, array.dtype, array.tobytes())
        != (second[name].shape, second[name].dtype, second[name].tobytes())
    ]


def parameter_distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Largest relative Frobenius norm of a difference over all slices."""
    names = [name for name in first if name.endswith("/parameters") and name in second]
    assert names
    return max(float(np.linalg.norm(first[n] - second[n]) / np.linalg.norm(first[n])) for n in names)
