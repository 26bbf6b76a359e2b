"""The Plan: job, data and rank count turned into who holds what, where it lives and who talks to whom.

`check`, `plan`, `run` and studies share it. Building one needs neither MPI nor a GPU, and torch only for the
parameter shapes (`Plan.layouts`), which are worked out on first use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.arrival import arrival_order
from parse_mpi.data.dataset import TRAIN, Dataset
from parse_mpi.data.partition import partition
from parse_mpi.data.sensors import Sensor, poor_sensors
from parse_mpi.eras import Era, Isolation, everyone, make_eras
from parse_mpi.errors import DataError, JobError, NonFiniteError, Problem
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile, job_digest
from parse_mpi.methods import make_method
from parse_mpi.methods.base import Method, SliceSpec
from parse_mpi.methods.layout import SliceLayout, slice_layouts
from parse_mpi.methods.sharing import slices_and_graphs
from parse_mpi.model.encoder_problems import encoder_problems, own_sources, require_room
from parse_mpi.planproblems import (
    agent_problems,
    budget_problems,
    coupling_problems,
    graph_problems,
    map_problems,
    optimiser_problems,
    rank_problems,
)
from parse_mpi.population import Agent, Blueprint, kind_numbers, make_agents, work_of
from parse_mpi.topology.placement import place
from parse_mpi.topology.slice_graph import SliceGraph
from parse_mpi.topology.traffic import Traffic, Use, make_traffic, uses_of

if TYPE_CHECKING:
    from torch import nn


Table = tuple[tuple[SliceSpec, ...], Mapping[str, SliceGraph]]


@dataclass(frozen=True, eq=False)
class Plan:
    """What every rank knows before it starts; equal on all ranks (`digest` proves it).

    samples: per agent, the indices of its training samples in the data set, ascending or, with data.stream, in the
    order of their arrival. sensors: the poor ones, by agent and modality.
    nodes: the node of every rank, 0, 1, ...; int64 [K]. hosts: works out `rank_of`, once for the plans of all eras.
    A job with events has a plan for every era: `agents`, `slices` and `graphs` are those from `start` finished rounds
    on, `what` the events that began it in words, and `later` the plans of the eras that follow.
    isolated: who was cut off in mid-run because of values that are not finite, which is an event too.
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
    nodes: NDArray[np.int64]
    hosts: Callable[[], NDArray[np.int64]]
    digest: str
    start: int = 0
    what: tuple[str, ...] = ()
    later: tuple[Plan, ...] = ()
    isolated: tuple[Isolation, ...] = ()

    @property
    def ranks(self) -> int:
        """How many ranks share the agents."""
        return len(self.nodes)

    @cached_property
    def rank_of(self) -> NDArray[np.int64]:
        """Rank that hosts each agent, int64 [A], in all eras. Imports torch where bytes decide (minimum-cut)."""
        return self.hosts()

    @property
    def eras(self) -> tuple[Plan, ...]:
        """This plan and those of the eras that follow."""
        return (self, *self.later)

    def at(self, round_index: int) -> Plan:
        """The plan that holds while round `round_index` (counted from 0) runs."""
        return next(plan for plan in reversed(self.eras) if plan.start <= round_index or plan is self)

    def without(self, isolated: Sequence[Isolation]) -> Plan:
        """The plan of the same run in which these agents, all so far, are cut off; slices keep their names.

        Raises NonFiniteError where that leaves nobody.
        """
        modalities = list(self.shapes)
        agents = make_agents(self.job, modalities)
        eras, _ = make_eras(self.job, agents, modalities, isolated)
        if empty := [era.start for era in eras if not any(agent.modalities for agent in era.agents)]:
            raise NonFiniteError(f"after round {empty[0]} no agent would be left")
        roster = everyone(agents, make_eras(self.job, agents, modalities)[0])
        tables = [slices_and_graphs(self.job, self.method, era, roster, self.sizes()) for era in eras]
        return _in_eras(replace(self, isolated=tuple(isolated)), eras, tables)

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
        """Of every blueprint a network without values, for torch.func.functional_call. Imports torch.

        Raises JobError where there is no memory for its values.
        """
        import torch

        with torch.device("meta"):
            networks = {agent: self.network(agent, seed=0) for agent in self.models}
        for agent, network in networks.items():
            require_room(self.job, agent, network)
        return {agent.blueprint: network for agent, network in networks.items()}

    @cached_property
    def layer_sizes(self) -> dict[Blueprint, list[int]]:
        """How many numbers each layer of every blueprint's network gives for one sample. Imports torch."""
        from parse_mpi.model.activations import layer_sizes

        return {
            agent.blueprint: layer_sizes(self.network(agent, seed=0), {m: self.shapes[m] for m in agent.modalities})
            for agent in self.models
        }

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

    @cached_property
    def specs(self) -> dict[str, SliceSpec]:
        """The slices by name."""
        return {spec.name: spec for spec in self.slices}

    @property
    def averaged_graphs(self) -> list[SliceGraph]:
        """Graphs over which neighbours average slices."""
        used = {spec.graph for spec in self.slices}
        return [graph for name, graph in self.graphs.items() if name in used]

    @property
    def coupled_graphs(self) -> list[SliceGraph]:
        """Graphs over which restriction maps tie slices together."""
        used = {spec.coupling.graph for spec in self.slices if spec.coupling}
        return [graph for name, graph in self.graphs.items() if name in used]

    def copies(self, name: str) -> int:
        """How many matrices as wide as its parameters a slice has that travel.

        More than one where the optimiser averages another, or updates travel apart from the rows.
        """
        camps = self.specs[name].camps
        return 1 + len(camps) if camps else self.job.train.optimiser.copies

    def travelling(self, name: str) -> int:
        """Columns of a slice that travel."""
        return self.copies(name) * self.layouts[name].width

    def saved(self, name: str) -> int:
        """Columns of a slice that outlive a round: updates that travel apart do not."""
        return self.layouts[name].width if self.specs[name].camps else self.travelling(name)

    def map_columns(self, name: str) -> int:
        """Columns of the restriction maps that an agent keeps for a slice, for as many neighbours as any holder has."""
        coupling = self.specs[name].coupling
        if coupling is None:
            return 0
        graph = self.graphs[coupling.graph]
        most = max(graph.degrees()[np.isin(graph.agents, self.specs[name].holders)])
        return int(most) * coupling.width * self.layouts[name].width

    def row_bytes(self, graph: str) -> int:
        """Bytes of an agent's rows that neighbours on a graph average; a rank gets them once for all of its agents."""
        return self.item_bytes * sum(self.travelling(spec.name) for spec in self.slices if spec.graph == graph)

    def lengths(self) -> list[int]:
        """Rounds of each era, up to train.rounds."""
        bounds = np.minimum([*(era.start for era in self.eras), self.job.train.rounds], self.job.train.rounds)
        return [int(rounds) for rounds in np.diff(bounds)]

    def placed(self, placement: str) -> NDArray[np.int64]:
        """Rank of each agent, int64 [A], under the placement of that name, whichever is the job's."""
        kinds = kind_numbers([era.agents for era in self.eras])
        return place(placement, kinds, self.costs(), self.nodes, self.traffic, self.job.seed)

    def costs(self) -> NDArray[np.int64]:
        """The work of each agent in the whole run, int64 [A]."""
        return work_of([era.agents for era in self.eras], self.lengths())

    def traffic(self) -> Traffic:
        """Rows and messages of the whole run, whole rows whatever a budget keeps back. Imports torch."""
        uses: list[Use] = []
        for era, rounds in zip(self.eras, self.lengths(), strict=True):
            for name, graph in era.graphs.items():
                columns = sum(era.travelling(spec.name) / spec.every for spec in era.slices if spec.graph == name)
                uses += uses_of(graph, rounds * columns * self.item_bytes, rounds * era.message_bytes(name))
        return make_traffic(uses, any(graph.usually_sampled for era in self.eras for graph in era.graphs.values()))

    def message_bytes(self, graph: str) -> int:
        """Bytes that restriction maps send over each link of a graph, to every neighbour others."""
        tied = {spec.coupling.width for spec in self.slices if spec.coupling and spec.coupling.graph == graph}
        return self.item_bytes * sum(tied)


def make_plan(jobfile: JobFile, dataset: Dataset, ranks: int, nodes: Sequence[int] = ()) -> Plan:
    """Build the plan, or raise JobError with every problem that only data, graphs or ranks can show.

    nodes: the node of every rank, 0, 1, ...; without it, all ranks are on one.
    """
    job = jobfile.job
    ranks_problems = rank_problems(sum(entry.count for entry in job.agents), ranks)
    if problems := agent_problems(jobfile, dataset):
        raise JobError(problems + ranks_problems)
    modalities = list(dataset.modalities)
    agents = make_agents(job, modalities)
    eras, wrong_events = make_eras(job, agents, modalities)
    if wrong_events:
        event_problems = [Problem(jobfile.where("events", k), what) for k, what in wrong_events.items()]
        raise JobError(event_problems + ranks_problems)
    method = make_method(job)
    roster = everyone(agents, eras)
    shapes = {m: tuple(x.shape[1:]) for m, x in dataset.modalities.items()}
    samples: tuple[NDArray[np.int64], ...] = ()
    problems = []
    try:
        samples = _deal_samples(job, dataset, len(agents))
    except DataError as error:
        problems.append(Problem(jobfile.where("data", "partition"), str(error)))
    sizes = np.array([len(own) for own in samples] or [1] * len(agents), np.int64)
    tables = [slices_and_graphs(job, method, era, roster, sizes) for era in eras]
    problems += [
        problem
        for era, (_, graphs) in zip(eras, tables, strict=True)
        for problem in graph_problems(jobfile, era, graphs)
    ]
    mixed = {spec.name: spec for slices, _ in tables for spec in slices if spec.graph}
    problems += budget_problems(jobfile, list(mixed.values()))
    wrong_options = dict.fromkeys(what for era in eras for what in method.problems(era.agents, roster))
    problems += [Problem(jobfile.where("method"), what) for what in wrong_options]
    problems += encoder_problems(jobfile, roster, shapes)
    problems += optimiser_problems(jobfile, *tables[0]) + coupling_problems(jobfile, *tables[0]) + ranks_problems
    sensors, wrong_sensors = poor_sensors(job.data.poor, agents, job.seed)
    problems += [Problem(jobfile.where("data", "poor", k), what) for k, what in wrong_sensors.items()]
    if problems:
        raise JobError(problems)
    digest = _digest(job, dataset, samples, own_sources(encoder for agent in roster for encoder in agent.encoders))

    @cache
    def hosts() -> NDArray[np.int64]:
        return plan.placed(job.placement)

    plan = Plan(
        job=job,
        method=method,
        agents=agents,
        shapes=shapes,
        class_count=dataset.class_count,
        slices=(),
        graphs={},
        samples=samples,
        sensors=sensors,
        nodes=np.array(nodes or [0] * ranks, np.int64),
        hosts=hosts,
        digest=digest,
    )
    plan = _in_eras(plan, eras, tables)
    for era in plan.eras:
        columns = {spec.name: era.map_columns(spec.name) for spec in era.slices if spec.coupling}
        if problems := map_problems(jobfile, columns, plan.item_bytes):
            raise JobError(problems)
    return plan


def _in_eras(plan: Plan, eras: Sequence[Era], tables: Sequence[Table]) -> Plan:
    """The plan of the first era, with those of the others behind it; tables: slices and graphs of each."""
    later: tuple[Plan, ...] = ()
    for era, (slices, graphs) in zip(reversed(eras), reversed(tables), strict=True):
        plan = replace(
            plan,
            method=plan.method.at(era.start),
            agents=era.agents,
            slices=slices,
            graphs=graphs,
            start=era.start,
            what=era.what,
            later=later,
        )
        later = plan.eras
    return plan


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
