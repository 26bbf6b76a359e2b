"""`parse-mpi scaling`: run every point that is not finished, one at a time, and collect what they measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parse_mpi.compare.directory import make_directory
from parse_mpi.compare.gather import provenance
from parse_mpi.compare.pool import Pool
from parse_mpi.compare.standing import is_finished, run_of, standing
from parse_mpi.compare.trials import in_order
from parse_mpi.errors import StorageError
from parse_mpi.scaling.collect import Collector
from parse_mpi.scaling.points import Point, check_points, make_points
from parse_mpi.scaling.reading import read_scaling_study
from parse_mpi.scaling.scalingfile import Launched, Scaling, write_scaling_file

RESULT = "scaling.h5"


@dataclass(frozen=True)
class Ended:
    """How a study ended. failed: point -> reason. open: how many points are neither finished nor failed."""

    failed: dict[str, str]
    open: int
    result: Path


class ScalingStudy:
    """A scaling study and the directory of its results."""

    def __init__(self, path: Path, out: Path):
        """Raises StudyError where the study or one of its jobs is wrong, StorageError where `out` is something else."""
        self.study = read_scaling_study(path)
        self.out = out
        self.points = make_points(self.study)
        check_points(self.study, (p for p in self.points if not run_of(out, p.trial).exists()))
        make_directory(self.study.spec.name, self.study.text, out)

    def run(self) -> Ended:
        """Launch what is not finished by mpiexec, then collect."""
        pool = Pool(self.out, self.study.spec.launch.pool())
        outcomes = pool.run([point.trial for point in self.points], "points")
        return self.collect({o.trial.name: o.reason for o in outcomes if o.status == "failed"})

    def unfinished(self) -> list[Point]:
        """Points that are not measured yet; `command` starts one."""
        return [point for point in self.points if not is_finished(self.out, point.trial)]

    def command(self, point: Point) -> list[str]:
        """What every rank of a point executes, under mpiexec or srun with `point.ranks` ranks on `point.nodes` nodes.

        The same command goes on after a stop.
        """
        words = ["parse-mpi", "run", str(point.trial.base), "--out", str(run_of(self.out, point.trial).path)]
        for override in in_order(point.trial.overrides):
            words += ["--set", override]
        return [*words, "--time-limit", self.study.spec.launch.time_limit]

    def collect(self, failed: dict[str, str] | None = None) -> Ended:
        """Write scaling.h5 from all points that are finished, wherever they ran. failed: point -> reason."""
        known, collector = dict(failed or {}), Collector(self.study.spec.warm_up)
        in_turn = sorted(range(len(self.points)), key=lambda k: (self.points[k].agents, self.points[k].ranks))
        launches = {k: self._launched(self.points[k], known, collector) for k in in_turn}
        ordered = tuple(launches[k] for k in range(len(self.points)))
        spec, first = self.study.spec, self.points[0].trial.job
        records = (run_of(self.out, point.trial).provenance_path for point in self.points)
        scaling = Scaling(
            name=spec.name,
            job=first.name,
            order=first.train.order,
            kinds={name: curve.kind for name, curve in spec.curves.items()},
            warm_up=spec.warm_up,
            launches=ordered,
            provenance=provenance(self.study.text, records),
        )
        write_scaling_file(self.out / RESULT, scaling)
        return Ended(known, _open(ordered), self.out / RESULT)

    def _launched(self, point: Point, failed: dict[str, str], collector: Collector) -> Launched:
        """The result of a point; what can't be read counts as failed."""
        size = (point.curve, point.ranks, point.nodes, point.agents, point.repeat)
        name, run = point.trial.name, run_of(self.out, point.trial)
        found = standing(run, point.trial)
        if name not in failed and found.has_failed:
            failed[name] = found.reason
        if name in failed:
            return Launched(*size, "failed", failed[name])
        if found.what != "finished":
            return Launched(*size, "missing")
        try:
            return Launched(*size, "finished", result=collector.read(point, run))
        except StorageError as error:
            failed[name] = str(error)
            return Launched(*size, "failed", failed[name])


def _open(launches: Sequence[Launched]) -> int:
    return sum(launch.status == "missing" for launch in launches)
