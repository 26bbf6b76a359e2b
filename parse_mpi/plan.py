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

from parse_mpi.data.arrival import arrival_order
from parse_mpi.data.dataset import TRAIN, Dataset
from parse_mpi.data.partition import partition
from parse_mpi.data.sensors import Sensor, poor_sensors
from parse_mpi.eras import Era, everyone, make_eras
from parse_mpi.errors import DataError, JobError, Problem, counted
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, job_digest
from parse_mpi.methods import make_method
from parse_mpi.methods.base import Method, SliceSpec
from parse_mpi.methods.layout import SliceLayout, slice_layouts
from parse_mpi.methods.sharing import slices_and_graphs
from parse_mpi.model.encoder_problems import encoder_problems, own_sources
from parse_mpi.population import Agent, Blueprint, make_agents
from parse_mpi.topology.slice_graph import SliceGraph

if TYPE_CHECKING:
    from torch import nn

MODALITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
D2_LOWEST = -1 / 3 + 1e-6  # rings of an even number of agents have -1/3, give or take rounding


@dataclass(frozen=True, eq=False)
class Plan:
    """What every rank knows before it starts; equal on all ranks (`digest` proves it).

    samples: per agent, the indices of its training samples in the data set, ascending or, with data.stream, in the
    order of their arrival. sensors: the poor ones, by agent and modality.
    rank_of: rank that hosts each agent, int64 [A].
    A job with events has a plan for every era: `agents`, `slices` and `graphs` are those from `start` finished rounds
    on, `what` the events that began it in words, and `later` the plans of the eras that follow.
    """

    job: Job
    method: Method
    agents: tuple[Agent, ...]
    shapes: Mapping[str, tuple[int, ...]]
    class_count: int
    slices: tuple[SliceSpec, ...]
    graphs: Mapping[str, SliceGraph]
    samples: tuple[NDArray[np.int64], ...]
    sensors: Mapping[tuple[int, str], Sensor]
    rank_of: NDArray[np.int64]
    ranks: int
    digest: str
    start: int
    what: tuple[str, ...]
    later: tuple[Plan, ...]

    @property
    def eras(self) -> tuple[Plan, ...]:
        """This plan and those of the eras that follow."""
        return (self, *self.later)

    def at(self, round_index: int) -> Plan:
        """The plan that holds while round `round_index` (counted from 0) runs."""
        return next(plan for plan in reversed(self.eras) if plan.start <= round_index or plan is self)

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
        return slice_layouts([(agent, self.skeletons[agent.blueprint]) for agent in self.models], self.slices)

    @cached_property
    def skeletons(self) -> dict[Blueprint, nn.Module]:
        """Of every blueprint a network without values, for torch.func.functional_call. Imports torch."""
        import torch

        with torch.device("meta"):
            return {agent.blueprint: self.network(agent, seed=0) for agent in self.models}

    @cached_property
    def alignment_weights(self) -> dict[tuple[str, ...], float]:
        """The factor in front of the alignment term for agents of every kind, before its schedule."""
        return {kind: self.method.alignment_weight(kind, self.agents) for kind in self.kinds}

    def network(self, agent: Agent, seed: int) -> nn.Module:
        """The network of an agent at its initial values."""
        return self.method.network(agent, self.shapes, self.class_count, seed)

    @property
    def item_bytes(self) -> int:
        """Bytes of one number in a row."""
        return int(np.dtype(self.job.dtype).itemsize)

    @property
    def copies(self) -> int:
        """How many matrices as wide as the parameters travel: more than one where the optimiser averages another."""
        return self.job.train.optimiser.copies

    def travelling(self, name: str) -> int:
        """Columns of a slice that travel."""
        return self.copies * self.layouts[name].width

    def row_bytes(self, graph: str) -> int:
        """Bytes of all slices of one agent that travel together over a graph."""
        widths = [self.layouts[spec.name].width for spec in self.slices if spec.graph == graph]
        return self.item_bytes * self.copies * sum(widths)


def make_plan(jobfile: JobFile, dataset: Dataset, ranks: int) -> Plan:
    """Build the plan, or raise JobError with every problem that only data, graphs or ranks can show."""
    job = jobfile.job
    ranks_problems = _rank_problems(sum(entry.count for entry in job.agents), ranks)
    if problems := _agent_problems(jobfile, dataset):
        raise JobError(problems + ranks_problems)
    modalities = list(dataset.modalities)
    agents = make_agents(job, modalities)
    eras, wrong_events = make_eras(job, agents, modalities)
    if wrong_events:
        event_problems = [Problem(jobfile.where("events", k), what) for k, what in wrong_events.items()]
        raise JobError(event_problems + ranks_problems)
    method = make_method(job.method)
    roster = everyone(agents, eras)
    shapes = {m: tuple(x.shape[1:]) for m, x in dataset.modalities.items()}
    tables = [slices_and_graphs(job, method, era, roster) for era in eras]
    problems = [
        problem
        for era, (_, graphs) in zip(eras, tables, strict=True)
        for problem in _graph_problems(jobfile, era, graphs)
    ]
    mixed = {spec.name: spec for slices, _ in tables for spec in slices if spec.graph}
    problems += _budget_problems(jobfile, list(mixed.values()))
    wrong_options = dict.fromkeys(what for era in eras for what in method.problems(era.agents, roster))
    problems += [Problem(jobfile.where("method"), what) for what in wrong_options]
    problems += encoder_problems(jobfile, roster, shapes)
    problems += _optimiser_problems(jobfile, *tables[0]) + ranks_problems
    samples: tuple[NDArray[np.int64], ...] = ()
    try:
        samples = _deal_samples(job, dataset, len(agents))
    except DataError as error:
        problems.append(Problem(jobfile.where("data", "partition"), str(error)))
    sensors, wrong_sensors = poor_sensors(job.data.poor, agents, job.seed)
    problems += [Problem(jobfile.where("data", "poor", k), what) for k, what in wrong_sensors.items()]
    if problems:
        raise JobError(problems)
    digest = _digest(job, dataset, samples, own_sources(encoder for agent in roster for encoder in agent.encoders))
    rank_of = place(agents, ranks)
    later: tuple[Plan, ...] = ()
    for era, (slices, graphs) in zip(reversed(eras), reversed(tables), strict=True):
        plan = Plan(
            job=job,
            method=method,
            agents=era.agents,
            shapes=shapes,
            class_count=dataset.class_count,
            slices=slices,
            graphs=graphs,
            samples=samples,
            sensors=sensors,
            rank_of=rank_of,
            ranks=ranks,
            digest=digest,
            start=era.start,
            what=era.what,
            later=later,
        )
        later = plan.eras
    return plan


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


def _deal_samples(job: Job, dataset: Dataset, agent_count: int) -> tuple[NDArray[np.int64], ...]:
    train, stream = dataset.indices(TRAIN), job.data.stream
    groups = None if dataset.groups is None else dataset.groups[train]
    parts = partition(dataset.labels[train], agent_count, job.data.partition, job.seed, groups)
    dealt = [train[part] for part in parts]
    if stream is not None:
        dealt = [own[arrival_order(dataset.labels[own], i, stream, job.seed)] for i, own in enumerate(dealt)]
    return tuple(dealt)


def _digest(job: Job, dataset: Dataset, samples: Sequence[NDArray[np.int64]], sources: Sequence[str]) -> str:
    """sha256 (hex) of all that decides the trajectory; an explicit partition is known by what it deals.

    sources: digests of the files that own encoders come from.
    """
    settled = f"{job_digest(job)}:{dataset.digest()}:{[len(own) for own in samples]}:{','.join(sources)}"
    total = hashlib.sha256(settled.encode())
    total.update(np.concatenate(samples).astype("<i8").tobytes())
    return total.hexdigest()


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


def _graph_problems(jobfile: JobFile, era: Era, graphs: Mapping[str, SliceGraph]) -> list[Problem]:
    if jobfile.job.topology.allow_disconnected or era.cut_links:  # who cuts a link knows that a graph may fall apart
        return []
    when = f" after round {era.start}" if era.start else ""
    problems = []
    for graph in graphs.values():
        for group, components in graph.disconnected_groups():
            listed = "; ".join(_brief(component) for component in components[:4])
            more = f"; and {len(components) - 4} more" if len(components) > 4 else ""
            problems.append(
                Problem(
                    jobfile.where("topology"),
                    f"graph {graph.name!r} of {len(group)} agents falls apart{when} into {len(components)} components: "
                    f"{listed}{more}",
                    "agents in different components never learn from each other: use scope: overlay or a denser "
                    "graph, or say allow_disconnected: true",
                )
            )
    return problems


def _optimiser_problems(
    jobfile: JobFile, slices: Sequence[SliceSpec], graphs: Mapping[str, SliceGraph]
) -> list[Problem]:
    """D^2 is made for one symmetric W, and stable where all its eigenvalues are above -1/3."""
    if jobfile.job.train.optimiser.name != "d2":
        return []
    if any(graph.directed or not graph.static for graph in graphs.values()):
        what = (
            f"d2 needs one symmetric mixing matrix for all rounds; topology.kind {jobfile.job.topology.kind} has none"
        )
        where = jobfile.where("train", "optimiser", "name")
        return [Problem(where, what, "choose a kind of static undirected graph, or gradient-tracking")]
    if rare := [spec.name for spec in slices if spec.every > 1]:
        where = jobfile.where("train", "optimiser", "name")
        return [
            Problem(where, f"d2 mixes in every round, {', '.join(rare)} does not", "say method.gate_sync: every-round")
        ]
    lowest = {graph.name: graph.smallest_eigenvalue() for graph in graphs.values()}
    return [
        Problem(
            jobfile.where("topology"),
            f"d2 diverges on graph {name!r}: the smallest eigenvalue of its W is {value:.3f}, it must be above -1/3",
            "say topology.lazy: true, which mixes with (I + W) / 2",
        )
        for name, value in lowest.items()
        if value <= D2_LOWEST
    ]


def _budget_problems(jobfile: JobFile, slices: Sequence[SliceSpec]) -> list[Problem]:
    """A budget gives columns their turns itself, and every slice needs room for a column and for rounding."""
    budget_bytes = jobfile.job.exchange.budget_bytes_per_link
    if budget_bytes is None:
        return []
    where, found = jobfile.where("exchange", "budget_bytes_per_link"), []
    least = 2 * np.dtype(jobfile.job.dtype).itemsize * len(slices)
    if budget_bytes < least:
        what = f"{budget_bytes} bytes are too few for {counted(len(slices), 'slice')} that may share a link"
        found.append(Problem(where, what, f"use {least} or more"))
    if rare := [spec.name for spec in slices if spec.every > 1]:
        what = f"{', '.join(rare)} mixes every few rounds only, which a budget can't plan"
        found.append(Problem(where, what, "say method.gate_sync: every-round or local"))
    return found


def _brief(agents: Sequence[int]) -> str:
    head = ", ".join(map(str, agents[:6]))
    return f"{{{head}{', …' if len(agents) > 6 else ''}}} ({len(agents)})"


def _rank_problems(agent_count: int, ranks: int) -> list[Problem]:
    if 1 <= ranks <= agent_count:
        return []
    what = f"{counted(ranks, 'rank')} can't share {counted(agent_count, 'agent')}: every rank hosts at least one"
    return [Problem("ranks", what, f"start 1 to {agent_count} ranks, or raise the agents' counts")]
