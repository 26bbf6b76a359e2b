"""What a round will take on more nodes, for its own topology and the shipped ones, and where more stop paying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from parse_mpi.batch.site import read_site
from parse_mpi.data.dataset import Dataset
from parse_mpi.errors import JobError, ParseMpiError, counted
from parse_mpi.job import Job
from parse_mpi.jobfile import load_job
from parse_mpi.jobpaths import SHIPPED_DIRS
from parse_mpi.plan import Plan, make_plan
from parse_mpi.scaling.costmodel import CostModel, HeldOut, crowding, demand_of, fit, hold_out, samples_of
from parse_mpi.scaling.loads import Loads, rank_loads
from parse_mpi.scaling.scalingfile import load_scaling
from parse_mpi.topology.placement import PLACEMENTS

PAYS = 1.25  # times faster that a round must get with twice the nodes
MOST_LINKS = 4_000_000  # of a graph that is counted link by link


@dataclass(frozen=True)
class Costs:
    """A model and what it was fitted to. cores, threads: of a host, and of a rank."""

    model: CostModel
    held_out: tuple[HeldOut, ...]
    cores: int
    threads: int
    job: str
    order: str
    source: Path


@dataclass(frozen=True)
class Prediction:
    """A round on so many nodes. seconds: by part. beyond: features that are extrapolated."""

    nodes: int
    ranks: int
    loads: Loads
    seconds: Mapping[str, float]
    beyond: tuple[str, ...]

    @property
    def round_s(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Outlook:
    """One topology and placement, on ascending numbers of nodes. own: both are the job's."""

    topology: str
    placement: str
    own: bool
    predictions: tuple[Prediction, ...]

    def efficiency(self, prediction: Prediction) -> float:
        """Of the ideal speed-up over the first number of nodes."""
        first = self.predictions[0]
        return first.round_s * first.nodes / (prediction.round_s * prediction.nodes)

    @property
    def pays_up_to(self) -> int:
        """The most nodes such that every doubling on the way makes a round at least PAYS times faster."""
        for here, there in pairwise(self.predictions):
            if here.round_s / there.round_s < PAYS ** np.log2(there.nodes / here.nodes):
                return here.nodes
        return self.predictions[-1].nodes


def read_costs(path: Path, site: Path | None) -> Costs:
    """The model of a scaling.h5; the network is that of the site file where no two nodes were measured.

    Raises StorageError, BatchError, and ParseMpiError where nothing was measured.
    """
    scaling = load_scaling(path)
    samples = samples_of(scaling)
    model = fit(samples)
    network = read_site(site).network if site is not None else None
    if not model.network and network is not None:
        given = {("exchange", "messages_between"): network.message_s, ("exchange", "bytes_between"): network.byte_s}
        model = replace(model, constants={**model.constants, **given}, network=str(site))
    first = next(launch.result for launch in scaling.launches if launch.result is not None)
    return Costs(
        model=model,
        held_out=tuple(hold_out(samples)),
        cores=int(first.host_cores[0]),
        threads=int(first.threads[0]),
        job=scaling.job,
        order=scaling.order,
        source=path,
    )


def outlooks(plans: Mapping[str, Plan], own: str, costs: Costs, nodes: int, ranks_per_node: int) -> Iterator[Outlook]:
    """For the job's topology under every placement, and for the others under the job's.

    Raises ParseMpiError where nothing is known of the network between nodes.
    """
    if nodes > 1 and not costs.model.network:
        raise ParseMpiError(
            f"{costs.source} was measured on one node and tells nothing of the network between nodes: say --site FILE, "
            "a site file with the section `network: {latency_us: ..., bandwidth_gb_s: ...}`, or measure a curve with "
            "ranks_per_node on several nodes"
        )
    for topology, plan in plans.items():
        counts = [count for count in node_counts(nodes) if count * ranks_per_node <= len(plan.agents)]
        if not counts:
            raise ParseMpiError(
                f"{counted(ranks_per_node, 'rank')} a node are more than the {counted(len(plan.agents), 'agent')} of "
                "the job; say fewer --ranks-per-node"
            )
        its = plan.job.placement
        for name in (its, *(other for other in PLACEMENTS if other != its)) if topology == own else (its,):
            predictions = tuple(predict(plan, name, costs, count, ranks_per_node) for count in counts)
            yield Outlook(topology, name, topology == own and name == its, predictions)


def predict(plan: Plan, placement: str, costs: Costs, nodes: int, ranks_per_node: int) -> Prediction:
    """A round of the first era on full nodes like those that were measured."""
    ranks = nodes * ranks_per_node
    node_of = np.arange(ranks) // ranks_per_node
    loads = rank_loads(plan, replace(plan, nodes=node_of).placed(placement), node_of)
    demand = demand_of(loads, node_of, crowding(ranks_per_node * costs.threads, costs.cores))
    return Prediction(nodes, ranks, loads, costs.model.seconds(demand), tuple(costs.model.beyond(demand)))


def node_counts(most: int) -> list[int]:
    """1, 2, 4, ... and the most itself."""
    powers = [1 << k for k in range(most.bit_length())]
    return sorted({*(count for count in powers if count <= most), most})


def plans_by_topology(
    path: Path, overrides: Sequence[str], dataset: Dataset, job: Job
) -> tuple[dict[str, Plan], str, dict[str, str]]:
    """The job's plan with its own topology first, and with every shipped one that suits it; the name of its own; and
    shipped ones that do not suit, with the reason."""
    own, others, unfit = "the job's own", dict[str, Plan](), dict[str, str]()
    for name in sorted({file.stem for folder in SHIPPED_DIRS for file in (folder / "topologies").glob("*.yaml")}):
        try:
            jobfile = load_job(path, [*overrides, f"topology={name}"])
            if jobfile.job.topology == job.topology:
                own = name
            elif links(jobfile.job) > MOST_LINKS:
                unfit[name] = "too many links to count"
            else:
                others[name] = make_plan(jobfile, dataset, 1)
        except JobError as error:
            unfit[name] = error.problems[0].what
    return {own: make_plan(load_job(path, overrides), dataset, 1), **others}, own, unfit


def links(job: Job) -> float:
    """About how many links the densest graph of a job has: of those whose number grows with the square of agents."""
    agents = sum(entry.count for entry in job.agents)
    share = {"complete": 1.0, "erdos-renyi": job.topology.probability or 0.0}.get(job.topology.kind, 0.0)
    return share * agents**2
