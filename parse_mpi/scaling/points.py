"""From a scaling study to its points: launches with ranks and nodes, each resolved by the ordinary job loader.

A point is a run directory under DIR/points. It does not matter who fills it: this study, a Slurm job, or a person who
starts the command of the point inside an allocation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parse_mpi.compare.trials import Trial, in_order
from parse_mpi.data.dataset import Dataset
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError, Problem, StudyError, counted
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, in_reading_order, load_job
from parse_mpi.plan import make_plan
from parse_mpi.scaling.reading import ScalingFile


@dataclass(frozen=True)
class Point:
    """One launch to be measured. repeat: which of the launches of the same point, from 0 on."""

    curve: str
    ranks: int
    nodes: int
    agents: int
    repeat: int
    trial: Trial


def make_points(study: ScalingFile) -> list[Point]:
    """All launches, every point once before any is repeated, so that a slow hour does not fall on one of them alone.

    Raises StudyError with all that is wrong with their jobs.
    """
    try:
        base = load_job(study.job, in_order(_settings(study))).job
    except JobError as error:
        raise StudyError(in_reading_order(_placed(study, error.problems, "settings"))) from None
    points, problems = [], dict[Problem, None]()
    for name, curve in study.spec.curves.items():
        for ranks, nodes, agents in curve.sizes(sum(entry.count for entry in base.agents)):
            try:
                points.append(_point(study, base, name, (ranks, nodes, agents)))
            except JobError as error:
                problems |= dict.fromkeys(_placed(study, error.problems, "curves", name))
    if problems:
        raise StudyError(in_reading_order(list(problems)))
    return [_repeated(point, repeat) for repeat in range(study.spec.repeats) for point in points]


def check_points(study: ScalingFile, points: Iterable[Point]) -> None:
    """Look for what only data, graphs and ranks can show. Raises StudyError with all of it."""
    problems, loaded, seen = dict[Problem, None](), dict[str, Dataset](), set[tuple[int, int]]()
    for point in points:
        if (point.ranks, point.agents) in seen:
            continue
        seen.add((point.ranks, point.agents))
        job = point.trial.job
        if not loaded:  # the same for all points: nothing that they change decides over data
            loaded["data"] = load_dataset(job.data, job.seed)
        try:
            make_plan(point.trial.jobfile, loaded["data"], point.ranks)
        except JobError as error:
            size = f"with {counted(point.agents, 'agent')} on {counted(point.ranks, 'rank')}"
            told = [replace(problem, what=f"{problem.what} ({size})") for problem in error.problems]
            problems |= dict.fromkeys(_placed(study, told, "curves", point.curve))
    if problems:
        raise StudyError(in_reading_order(list(problems)))


def shares(counts: Sequence[int], total: int) -> list[int]:
    """`total` agents dealt to the entries of a job in proportion to what they had, at least one each.

    Raises ValueError where there are fewer agents than entries.
    """
    if total < len(counts):
        raise ValueError(f"{total} agents can't be of {len(counts)} kinds")
    wanted = np.array(counts) * total / sum(counts)
    dealt = np.maximum(np.floor(wanted), 1).astype(int)
    while dealt.sum() != total:
        step = 1 if dealt.sum() < total else -1
        dealt[np.argmax(np.where(dealt + step > 0, step * (wanted - dealt), -np.inf))] += step
    return [int(count) for count in dealt]


def _settings(study: ScalingFile) -> dict[str, str]:
    """What the study sets beyond the base job, for all points alike."""
    spec = study.spec
    settings = {key: json.dumps(value, ensure_ascii=False) for key, value in spec.settings.items()}
    return settings | {"train.rounds": str(spec.warm_up + spec.rounds)}


def _point(study: ScalingFile, base: Job, curve: str, size: tuple[int, int, int]) -> Point:
    """The first launch of a point. Raises JobError."""
    ranks, nodes, agents = size
    counts = [entry.count for entry in base.agents]
    try:
        dealt = shares(counts, agents)
    except ValueError as error:
        raise JobError([Problem(study.where("curves", curve), str(error), "ask for more agents")]) from None
    overrides = _settings(study)
    if agents != sum(counts):
        overrides |= {f"agents.{k}.count": str(count) for k, count in enumerate(dealt)}
    jobfile: JobFile = load_job(study.job, in_order(overrides))
    levels = {"curve": curve, "ranks": str(ranks), "nodes": str(nodes), "agents": str(agents)}
    name = f"{curve},{ranks}r,{nodes}n,{agents}a"
    trial = Trial("point", name, levels, jobfile.job.seed, {}, study.job, overrides, {}, jobfile, ranks)
    return Point(curve, ranks, nodes, agents, 0, trial)


def _repeated(point: Point, repeat: int) -> Point:
    trial = replace(
        point.trial,
        name=f"{point.trial.name},{repeat}",
        levels={**point.trial.levels, "repeat": str(repeat)},
    )
    return replace(point, repeat=repeat, trial=trial)


def _placed(study: ScalingFile, problems: Iterable[Problem], *keys: str) -> list[Problem]:
    """The same problems with the line of the study where they come from an override; keys: where all others do."""
    known: Mapping[str, str] = {key: study.where("settings", key) for key in study.spec.settings}
    placed = []
    for problem in problems:
        key = problem.where.removeprefix("--set ")
        is_ours = problem.where.startswith("--set ") or problem.where == "ranks"
        where = known.get(key, study.where(*keys)) if is_ours else problem.where
        placed.append(replace(problem, where=where))
    return placed
