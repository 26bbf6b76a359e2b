"""Made-up scaling studies whose costs are known, and small real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from compare_cases import JOB
from numpy.typing import NDArray
from small_jobs import merged, write_job

from parse_mpi.run.phases import PHASES
from parse_mpi.scaling.costmodel import PARTS, Demand, Sample
from parse_mpi.scaling.loads import LOADS, Loads
from parse_mpi.scaling.scalingfile import Launched, Measured, Scaling

PLANTED = {
    ("local steps", "rounds"): 4e-3,
    ("local steps", "work"): 3e-11,
    ("mixing", "rounds"): 5e-4,
    ("mixing", "moved_bytes"): 2e-10,
    ("exchange", "messages_within"): 3e-6,
    ("exchange", "bytes_within"): 2e-10,
    ("exchange", "messages_between"): 4e-5,
    ("exchange", "bytes_between"): 8e-10,
}
STUDY = {
    "name": "small",
    "job": "job.yaml",
    "curves": {"strong": {"kind": "strong", "ranks": [1, 2]}},
    "warm_up": 1,
    "rounds": 2,
    "repeats": 1,
}


def write_scaling_study(folder: Path, changes: Mapping[str, Any] | None = None, job: Any = None) -> Path:
    """A study file with STUDY and the changes, beside its job of three agents."""
    write_job(folder, merged(JOB, job or {}))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(merged(STUDY, changes or {}), sort_keys=False))
    return path


def planted_seconds(demand: Demand, part: str) -> float:
    """The plain sum that a part of a round takes."""
    return sum(PLANTED[part, name] * demand.amount(name) for name in PARTS[part])


def draw_samples(seed: int, count: int, noise: float, several_nodes: bool = True) -> list[Sample]:
    """Samples of many sizes whose parts take what PLANTED says, times a factor near 1."""
    draw = np.random.default_rng(seed)
    samples = []
    for k in range(count):
        alone = k % 4 == 0  # one rank in four studies nothing of the exchange
        amounts = {
            "rounds": 1.0,
            "ranks": 1.0 if alone else float(draw.integers(2, 65)),
            "work": 10.0 ** draw.uniform(7, 9),
            "moved_bytes": 10.0 ** draw.uniform(6, 8.5),
            "messages_within": 0.0 if alone else float(draw.integers(1, 40)),
            "bytes_within": 0.0 if alone else 10.0 ** draw.uniform(4, 8),
            "messages_between": float(draw.integers(1, 40)) if several_nodes and k % 2 else 0.0,
            "bytes_between": 10.0 ** draw.uniform(4, 8) if several_nodes and k % 2 else 0.0,
        }
        demand = Demand(amounts, float(draw.integers(1, 4)))
        seconds = {p: planted_seconds(demand, p) * float(np.exp(noise * draw.standard_normal())) for p in PARTS}
        samples.append(Sample((k, 1, k), demand, seconds, sum(seconds.values())))
    return samples


def make_measured(seconds: NDArray[np.float64], hosts: Sequence[str], cores: int = 64, **loads: Any) -> Measured:
    """A launch of ranks on hosts with seconds [R, K, phase]; loads: those that are not 0."""
    ranks = len(hosts)
    table = {name: np.broadcast_to(np.asarray(loads.get(name, 0.0), float), ranks) for name in LOADS}
    return Measured(
        phase=PHASES,
        round=np.arange(len(seconds)) + 3,
        seconds=seconds,
        travel_seconds=seconds[:, :, PHASES.index("wait")] * 4,
        sent_bytes=np.broadcast_to(
            (table["bytes_within"] + table["bytes_between"]).astype(int), seconds.shape[:2]
        ).copy(),
        host=np.array(hosts),
        host_cores=np.full(ranks, cores),
        threads=np.ones(ranks, int),
        peak_bytes=np.full(ranks, 400_000_000),
        loads=Loads(**table),
    )


def make_scaling(launches: Sequence[Launched], kinds: Mapping[str, str], order: str = "adapt-then-combine") -> Scaling:
    return Scaling("made-up", "job", order, dict(kinds), 2, tuple(launches), {"time": "now"})
