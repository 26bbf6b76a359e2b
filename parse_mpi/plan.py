"""The Plan: job, data and rank count turned into who holds what, where it lives and who talks to whom.

`check`, `plan`, `run` and studies share it. Building one needs neither MPI nor a GPU, and torch only for the
parameter shapes (`Plan.layouts`), which are worked out on first use.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from parse_mpi.data.partition import partition
from parse_mpi.errors import DataError, JobError, Problem, counted
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, job_digest
from parse_mpi.methods import make_method
from parse_mpi.methods.base import ALL, MULTIMODAL, Method, SliceSpec
from parse_mpi.methods.layout import SliceLayout, slice_layouts
from parse_mpi.population import Agent, make_agents
from parse_mpi.topology.slice_graph import SliceGraph, slice_graph

if TYPE_CHECKING:
    from torch import nn

MODALITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, eq=False)
class Plan:
    """What every rank knows before it starts; equal on all ranks (`digest` proves it).

    samples: per agent, the indices of its training samples in the data set, ascending.
    rank_of: rank that hosts each agent, int64 [A].
    """

    job: Job
    method: Method
    agents: tuple[Agent, ...]
    shapes: Mapping[str, tuple[int, ...]]
    class_count: int
    slices: tuple[SliceSpec, ...]
    graphs: Mapping[str, SliceGraph]
    samples: tuple[NDArray[np.int64], ...]
    rank_of: NDArray[np.int64]
    ranks: int
    digest: str

    @property
    def kinds(self) -> tuple[tuple[str, ...], ...]:
        """The modality sets that occur, in order of first appearance."""
        return tuple(dict.fromkeys(agent.modalities for agent in self.agents if agent.modalities))

    @property
    def models(self) -> tuple[Agent, ...]:
        """The first agent of every blueprint, in order of appearance."""
        return tuple({agent.blueprint: agent for agent in reversed(self.agents) if agent.modalities}.values())[::-1]

    def agents_on(self, rank: int) -> tuple[Agent, ...]:
        """The agents of one rank that take part, ascending by id."""
        return tuple(agent for agent in self.agents if agent.modalities and self.rank_of[agent.id] == rank)

    def sizes(self) -> NDArray[np.int64]:
        """Training samples per agent, int64 [A]."""
        return np.array([len(index) for index in self.samples], np.int64)

    @cached_property
    def layouts(self) -> dict[str, SliceLayout]:
        """Parameters of each slice by name. Imports torch."""
        import torch

        with torch.device("meta"):
            models = [(agent, self.network(agent, seed=0)) for agent in self.models]
        return slice_layouts(models, self.slices)

    def network(self, agent: Agent, seed: int) -> nn.Module:
        """The network of an agent at its initial values."""
        return self.method.network(agent, self.shapes, self.class_count, seed)

    @property
    def item_bytes(self) -> int:
        """Bytes of one number in a row."""
        return int(np.dtype(self.job.dtype).itemsize)

    def row_bytes(self, graph: str) -> int:
        """Bytes of all slices of one agent that travel together over a graph."""
        return self.item_bytes * sum(self.layouts[spec.name].width for spec in self.slices if spec.graph == graph)


def make_plan(jobfile: JobFile, dataset: Dataset, ranks: int) -> Plan:
    """Build the plan, or raise JobError with every problem that only data, graphs or ranks can show."""
    job = jobfile.job
    ranks_problems = _rank_problems(sum(entry.count for entry in job.agents), ranks)
    if problems := _agent_problems(jobfile, dataset):
        raise JobError(problems + ranks_problems)
    agents = make_agents(job, list(dataset.modalities))
    method = make_method(job.method)
    slices, graphs = _share_graphs(job, method.slices(agents), len(agents))
    problems = _graph_problems(jobfile, agents, graphs) + ranks_problems
    samples: tuple[NDArray[np.int64], ...] = ()
    try:
        samples = _deal_samples(job, dataset, len(agents))
    except DataError as error:
        problems.append(Problem(jobfile.where("data", "partition"), str(error)))
    if problems:
        raise JobError(problems)
    return Plan(
        job=job,
        method=method,
        agents=agents,
        shapes={m: tuple(x.shape[1:]) for m, x in dataset.modalities.items()},
        class_count=dataset.class_count,
        slices=slices,
        graphs=graphs,
        samples=samples,
        rank_of=place(agents, ranks),
        ranks=ranks,
        digest=hashlib.sha256(f"{job_digest(job)}:{dataset.digest()}".encode()).hexdigest(),
    )


def data_warnings(plan: Plan, dataset: Dataset) -> list[str]:
    """What is allowed but worth knowing before a run: empty splits, classes that nobody trains on."""
    warnings = []
    for name, split in (("validation", VALIDATION), ("test", TEST)):
        if not len(dataset.indices(split)):
            warnings.append(f"{dataset.name} has no {name} samples: accuracy on them is not reported")
    trained = np.bincount(dataset.labels[dataset.indices(TRAIN)], minlength=plan.class_count)
    if missing := np.flatnonzero(trained == 0).tolist():
        names = ", ".join(dataset.class_names[c] for c in missing[:8]) + (", …" if len(missing) > 8 else "")
        warnings.append(f"no training sample has the class {names}: no agent can learn it")
    return warnings


def place(agents: Sequence[Agent], ranks: int) -> NDArray[np.int64]:
    """Rank of each agent: every rank gets its share of every kind, so that all have about the same work.

    Agents are lined up by their relative position inside their kind and the line is cut into equal parts. Inside a
    kind neighbouring ids stay together, so that a ring crosses ranks as rarely as this allows.
    """
    kinds = np.array([agent.kind for agent in agents])
    position = np.empty(len(agents))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    line = np.argsort(position, kind="stable")
    rank_of = np.empty(len(agents), np.int64)
    rank_of[line] = np.arange(len(agents)) * ranks // len(agents)
    return rank_of


def _share_graphs(
    job: Job, table: Sequence[SliceSpec], agent_count: int
) -> tuple[tuple[SliceSpec, ...], dict[str, SliceGraph]]:
    """One graph for all slices that mix among the same agents, under the plainest of their names."""
    by_groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for spec in table:
        if spec.groups:
            by_groups.setdefault(spec.groups, []).append(spec.graph)
    names = {groups: min(found, key=_plainness) for groups, found in by_groups.items()}
    graphs = {name: slice_graph(name, groups, job.topology, job.seed, agent_count) for groups, name in names.items()}
    slices = tuple(SliceSpec(s.name, s.parameters, s.holders, names.get(s.groups, ""), s.groups) for s in table)
    return slices, graphs


def _plainness(name: str) -> tuple[bool, bool, str]:
    return name != ALL, name != MULTIMODAL, name


def _deal_samples(job: Job, dataset: Dataset, agent_count: int) -> tuple[NDArray[np.int64], ...]:
    train = dataset.indices(TRAIN)
    parts = partition(dataset.labels[train], agent_count, job.data.partition, job.seed)
    return tuple(train[part] for part in parts)


def _agent_problems(jobfile: JobFile, dataset: Dataset) -> list[Problem]:
    known = list(dataset.modalities)
    problems = [
        Problem(jobfile.where("data", "source"), f"modality name {m!r} can't name an HDF5 group and a parameter",
                "use letters, digits, _ and -, beginning with a letter")
        for m in known
        if not MODALITY_NAME.fullmatch(m)
    ]  # fmt: skip
    for k, entry in enumerate(jobfile.job.agents):
        for m in entry.modalities:
            if m not in known:
                close = difflib.get_close_matches(m, known, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                problems.append(
                    Problem(
                        jobfile.where("agents", k, "modalities"),
                        f"no data for modality {m!r}",
                        f"{hint}{dataset.name} holds {', '.join(known)}",
                    )
                )
    return problems


def _graph_problems(jobfile: JobFile, agents: Sequence[Agent], graphs: Mapping[str, SliceGraph]) -> list[Problem]:
    if jobfile.job.topology.allow_disconnected:
        return []
    problems = []
    for graph in graphs.values():
        for group, components in graph.disconnected_groups():
            listed = "; ".join(_brief(component) for component in components[:4])
            more = f"; and {len(components) - 4} more" if len(components) > 4 else ""
            problems.append(
                Problem(
                    jobfile.where("topology"),
                    f"graph {graph.name!r} of {len(group)} agents falls apart into {len(components)} components: "
                    f"{listed}{more}",
                    "agents in different components never learn from each other: use scope: overlay or a denser "
                    "graph, or say allow_disconnected: true",
                )
            )
    return problems


def _brief(agents: Sequence[int]) -> str:
    head = ", ".join(map(str, agents[:6]))
    return f"{{{head}{', …' if len(agents) > 6 else ''}}} ({len(agents)})"


def _rank_problems(agent_count: int, ranks: int) -> list[Problem]:
    if 1 <= ranks <= agent_count:
        return []
    what = f"{counted(ranks, 'rank')} can't share {counted(agent_count, 'agent')}: every rank hosts at least one"
    return [Problem("ranks", what, f"start 1 to {agent_count} ranks, or raise the agents' counts")]
