"""A run as its directory recorded it, finished or under way. Needs neither torch nor the data set.

Shapes: A agents, E evaluations, K ranks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parse_mpi.eras import Era, Isolation, everyone, make_eras
from parse_mpi.errors import StorageError
from parse_mpi.job import Job
from parse_mpi.jobfile import load_job
from parse_mpi.methods import make_method
from parse_mpi.methods.sharing import slices_and_graphs
from parse_mpi.population import Agent, kind_numbers, make_agents
from parse_mpi.run.summary import eras_of
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.metrics import Metrics, read_metrics
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.topology.placement import share
from parse_mpi.topology.slice_graph import SliceGraph

Member = NDArray[np.bool_]

MOST_KINDS = 16


@dataclass(frozen=True)
class RecordedRun:
    """Job and metrics of a run, and what follows from them."""

    job: Job
    metrics: Metrics

    @classmethod
    def read(cls, run: Path) -> RecordedRun:
        """Read a run directory. Raises StorageError where it holds no run or no metrics yet."""
        directory = RunDirectory(run)
        if not directory.exists():
            raise StorageError(f"{directory.path}: no run has started here (there is no job.yaml)")
        return cls(recorded_job(directory), read_metrics(directory.path))

    @cached_property
    def agents(self) -> tuple[Agent, ...]:
        """All agents by id, as the job lists them."""
        return make_agents(self.job, self.modalities)

    @cached_property
    def planned_eras(self) -> tuple[Era, ...]:
        """All stretches of the run between its events, agents that were cut off among them."""
        return make_eras(self.job, self.agents, self.modalities, self._isolated)[0]

    @property
    def eras(self) -> tuple[Era, ...]:
        """Those that the recorded rounds have reached."""
        return tuple(era for era in self.planned_eras if era.start < max(self.last_round, 1))

    def kinds(self, most: int = MOST_KINDS) -> dict[str, Member]:
        """Kind -> bool [era, A], which agents are of it in which era; in order of appearance.

        Where there are more than `most`, too many for one picture, agents with equally many modalities are one kind.
        """
        names = _kind_names([era.agents for era in self.eras], most)
        return {name: names == name for name in dict.fromkeys(names.flat) if name}

    def listed(self) -> dict[str, NDArray[np.int64]]:
        """Kind -> ids of the agents that the job lists as such."""
        names = _kind_names([self.agents], MOST_KINDS)[0]
        return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}

    def members(self, rounds: NDArray[np.int64]) -> dict[str, Member]:
        """Kind -> bool [R, A], which agents are of it in each of these rounds."""
        era = eras_of(self.metrics, rounds)
        return {name: here[era] for name, here in self.kinds().items()}

    @property
    def modalities(self) -> list[str]:
        """All modalities, in the order of the data set."""
        return self.labels("agents", "modalities")

    @cached_property
    def ranks(self) -> int:
        """Ranks of the last recorded round; 1 before the first."""
        seconds = self.metrics.arrays.get("ranks/seconds")
        return 1 if seconds is None else int(np.isfinite(seconds[-1]).any(axis=1).sum())

    @cached_property
    def rank_of(self) -> NDArray[np.int64]:
        """Rank that hosts each agent in the newest launch, int64 [A]; as with `share` where that was not recorded."""
        recorded = self.metrics.arrays.get("placement/rank")
        if recorded is not None and recorded.max(initial=0) < self.ranks:
            return recorded
        return share(kind_numbers([self.agents]), self.ranks)

    @cached_property
    def graphs(self) -> tuple[dict[str, SliceGraph], ...]:
        """Name -> graph in every era, those of modalities first; empty where a method exchanges nothing."""
        job, method = self.job, make_method(self.job)
        roster = everyone(self.agents, make_eras(job, self.agents, self.modalities)[0])
        sizes = self.metrics["agents/class_histogram"].sum(1)
        found = [slices_and_graphs(job, method, era, roster, sizes)[1] for era in self.eras]
        return tuple(
            {name: graphs[name] for name in [m for m in self.modalities if m in graphs] + list(graphs)}
            for graphs in found
        )

    @property
    def _isolated(self) -> list[Isolation]:
        """Who was cut off because of values that are not finite; nobody in runs of versions that could not do that."""
        columns = [self.metrics.arrays.get(f"isolations/{name}", np.empty(0)) for name in ("round", "agent")]
        return [(int(done), int(agent)) for done, agent in zip(*columns, strict=True)]

    @property
    def last_round(self) -> int:
        """Finished rounds that are recorded."""
        rounds = self.metrics.arrays.get("rounds/round")
        return 0 if rounds is None else int(rounds[-1])

    def labels(self, data_set: str, key: str) -> list[str]:
        """The names along an axis of a data set. Raises StorageError where the metrics do not tell."""
        names = self.metrics.attributes.get(data_set, {}).get(key)
        if names is None:
            raise StorageError(f"the metrics hold no {key} of {data_set}; what is missing tells: parse-mpi verify RUN")
        return [str(name) for name in np.atleast_1d(np.asarray(names))]

    def test_accuracy(self, prediction: str) -> NDArray[np.float64]:
        """Accuracy on the common test split [E, A]; nan where an agent lacks the slice of the prediction."""
        name = "evaluations/accuracy"
        split = self.labels(name, "split").index("test")
        weighting = self.labels(name, "weighting").index("global")
        column = self.labels(name, "prediction").index(prediction)
        return self.metrics[name][:, :, split, weighting, column]

    def title(self) -> str:
        """One line that says which run this is."""
        job = self.job
        topology = job.topology.kind + (" (induced)" if job.topology.scope == "induced" else "")
        if job.method.aggregate == "exact":
            topology = "exact means"
        graph = topology if any(self.graphs) else "no exchange"
        reached = f"round {self.last_round} of {job.train.rounds}"
        return f"{job.name}: {job.method.name}, {graph}, {count_of(len(self.agents), 'agent')}, {reached}"


def recorded_job(run: RunDirectory) -> Job:
    """The job of a run, but for what it learns from: that may be elsewhere by now, and no sample is read here.

    Raises JobError where job.yaml is no job.
    """
    return load_job(run.job_path, ["data.source=digits", "data.partition={kind: iid}"]).job


def era_of(job: Job, modalities: Sequence[str], checkpoint: Checkpoint) -> Era:
    """The era whose end, or whose latest round so far, a checkpoint holds; modalities: all, in their order."""
    isolated = [(done, agent) for done, agent in json.loads(str(checkpoint.header.get("isolated", "[]")))]
    eras, _ = make_eras(job, make_agents(job, modalities), modalities, isolated)
    return next(era for era in reversed(eras) if era.start < max(checkpoint.round_index, 1))


def _kind_names(populations: Sequence[Sequence[Agent]], most: int) -> NDArray[np.str_]:
    """The kind of every agent in each population, "" for those that are away."""
    names = np.array([[agent.kind for agent in agents] for agents in populations])
    if len(set(names.flat) - {""}) <= most:
        return names
    counts = [[len(agent.modalities) for agent in agents] for agents in populations]
    return np.array([[count_of(n, "modality") if n else "" for n in row] for row in counts])


def count_of(count: int, noun: str) -> str:
    """1 agent, 1,000 agents, 2 modalities."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else plural}"
