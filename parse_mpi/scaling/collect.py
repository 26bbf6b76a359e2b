"""What a finished point measured, from its run directory, whoever started it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError, StorageError, counted
from parse_mpi.plan import Plan, make_plan
from parse_mpi.scaling.loads import Loads, rank_loads
from parse_mpi.scaling.points import Point
from parse_mpi.scaling.scalingfile import EVERY_ROUND, Measured, nodes_of
from parse_mpi.storage.metrics import Metrics, read_metrics
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.yamlfile import read_yaml

NEEDED = ("ranks/seconds", "ranks/travel_seconds", "ranks/sent_bytes", "ending/host", "ending/peak_bytes")


class Collector:
    """Reads points; the plan of the last one is kept for its repeats."""

    def __init__(self, warm_up: int):
        self.warm_up = warm_up
        self._plan: tuple[tuple[int, int], Plan] | None = None

    def read(self, point: Point, run: RunDirectory) -> Measured:
        """Raises StorageError where the metrics can't be read, are those of another launch, or hold too few rounds."""
        metrics = read_metrics(run.path)
        phase = tuple(map(str, np.atleast_1d(np.asarray(metrics.attributes["ranks/seconds"]["phase"]))))
        if any(name not in metrics.arrays for name in NEEDED) or not set(EVERY_ROUND) <= set(phase):
            raise StorageError(f"{run.path}: run by a version that did not measure all this; remove it to run it anew")
        host = metrics["ending/host"]
        if len(host) != point.ranks:
            raise StorageError(f"{run.path}: ran on {len(host)} ranks, not {point.ranks}; remove it to run it anew")
        if (nodes := len(np.unique(host))) != point.nodes:
            raise StorageError(
                f"{run.path}: ran on {counted(nodes, 'node')}, not {point.nodes}; remove it, and tell mpiexec hosts "
                "(`launch.options`) or run it in an allocation"
            )
        kept = measured_rounds(metrics, run, self.warm_up)
        if not kept.any():
            raise StorageError(f"{run.path}: no round is left after a warm-up of {self.warm_up}; raise `rounds`")
        return Measured(
            phase=phase,
            round=metrics["ranks/round"][kept],
            seconds=np.nan_to_num(metrics["ranks/seconds"][kept]),
            travel_seconds=metrics["ranks/travel_seconds"][kept],
            sent_bytes=metrics["ranks/sent_bytes"][kept].sum(2),
            host=host,
            host_cores=metrics["ending/host_cores"],
            threads=metrics["ending/threads"],
            peak_bytes=metrics["ending/peak_bytes"],
            loads=self._loads(point, nodes_of(host)),
        )

    def _loads(self, point: Point, node_of: NDArray[np.int64]) -> Loads:
        size = (point.ranks, point.agents)
        if self._plan is None or self._plan[0] != size:
            jobfile = point.trial.jobfile
            dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
            self._plan = size, make_plan(jobfile, dataset, point.ranks)
        plan = self._plan[1]
        return rank_loads(plan, plan.rank_of, node_of)


def measured_rounds(metrics: Metrics, run: RunDirectory, warm_up: int) -> NDArray[np.bool_]:
    """Which rounds count [R]: not the first ones after a start, nor those after a resume.

    Raises StorageError where the run's record of its launches can't be read.
    """
    rounds = metrics["ranks/round"]
    kept = np.ones(len(rounds), bool)
    for first in _starts(run):
        kept &= (rounds <= first) | (rounds > first + warm_up)
    return kept


def _starts(run: RunDirectory) -> list[int]:
    """Finished rounds when each launch began."""
    try:
        launches = read_yaml(run.provenance_path).value
    except JobError as error:
        raise StorageError(f"{run.provenance_path}: {error}") from None
    if not isinstance(launches, list):
        raise StorageError(f"{run.provenance_path}: lists no launches")
    return [int(str(launch["first_round"])) for launch in launches if isinstance(launch, dict)]
