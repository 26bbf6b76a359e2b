"""How much memory a rank will need: worked out from the plan before anything starts.

The parts that grow with agents (rows, gradients, optimiser state, samples) are counted to the byte; what one process
costs before its first agent is a constant that was measured (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from parse_mpi.agents.engines import STACK
from parse_mpi.agents.optimisers import Sgd
from parse_mpi.data.dataset import TEST, VALIDATION, Dataset
from parse_mpi.data.sampler import widest_batch
from parse_mpi.exchange.mixing import BLOCK_BYTES
from parse_mpi.exchange.routing import Route, ghost_bound, make_route
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import SAMPLES

PROCESS_BYTES = 325_000_000  # Python, torch (CPU build), MPI, h5py and what a run imports, resident
SCIKIT_LEARN_BYTES = 70_000_000  # which only the digits need
ACTIVATIONS = 3  # copies of a layer's output that are alive at the peak: forward, backward, and one temporary
LOGITS = 6  # the same for the logits of the contrastive term, which go through more operations
HARD_NEGATIVES = 4  # columns beside the batch's own


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank by part."""

    process: int
    data: int
    rows: int
    gradients: int
    optimiser: int
    exchange: int
    activations: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def first_routes(plan: Plan, rank: int) -> dict[str, Route]:
    """The rank's routes in the first round, by graph."""
    local = {agent.id for agent in plan.agents_on(rank)}
    return {
        name: make_route(graph.at(0), plan.rank_of, rank, [i for i in graph.agents if i in local])
        for name, graph in plan.graphs.items()
    }


def rank_memory(plan: Plan, dataset: Dataset, rank: int, routes: Mapping[str, Route]) -> RankMemory:
    """Estimate of the peak of one rank on a CPU; on a GPU `process` is host memory and the rest lies on the device.

    routes: the rank's `first_routes`.
    """
    item = plan.item_bytes
    local = {agent.id for agent in plan.agents_on(rank)}
    width = {spec.name: plan.layouts[spec.name].width for spec in plan.slices}
    held = {spec.name: len(local.intersection(spec.holders)) for spec in plan.slices}
    own = sum(held[name] * width[name] for name in held) * item
    ghosts, buffers = 0, 0
    for name, graph in plan.graphs.items():
        row = plan.row_bytes(name)
        ghosts += ghost_bound(graph, plan.rank_of, rank) * row
        buffers += (len(routes[name].ghosts) + len(routes[name].send_rows)) * row
    return RankMemory(
        process=PROCESS_BYTES + (SCIKIT_LEARN_BYTES if plan.job.data.source == "digits" else 0),
        data=_data_bytes(plan, dataset, rank, item),
        rows=own,
        gradients=own,
        optimiser=own * len(Sgd(plan.job.train.optimiser).state),
        exchange=ghosts + buffers + 3 * BLOCK_BYTES["cpu"],
        activations=_activation_bytes(plan, rank, item),
    )


def _data_bytes(plan: Plan, dataset: Dataset, rank: int, item: int) -> int:
    """The data set as it was read, the local agents' samples and the evaluation samples of the modalities held."""
    agents = plan.agents_on(rank)
    whole = sum(x.nbytes for x in dataset.modalities.values()) + dataset.labels.nbytes
    evaluated = len(dataset.indices(VALIDATION)) + len(dataset.indices(TEST))
    mine = 0
    for m, shape in plan.shapes.items():
        samples = sum(len(plan.samples[agent.id]) for agent in agents if m in agent.modalities)
        mine += (samples + (evaluated if samples else 0)) * math.prod(shape) * item
    return whole + mine


def _activation_bytes(plan: Plan, rank: int, item: int) -> int:
    """The largest stack of agents in its forward and backward pass, or in evaluation."""
    stacked = plan.job.mode == "fast" and plan.job.engine != "loop"
    network, widths = plan.job.method, plan.job.encoder.hidden
    slices = network.slices.unique + network.slices.redundant + network.slices.synergistic
    per_modality = 2 * sum(widths) + 2 * slices + 3 * plan.class_count
    local = plan.agents_on(rank)
    batch = widest_batch(plan.sizes()[[agent.id for agent in local]], plan.job.train.batch_size)
    peak = 0
    for kind in plan.kinds:
        agents = sum(agent.modalities == kind for agent in local)
        stack = min(agents, STACK) if stacked else min(agents, 1)
        sample = len(kind) * per_modality + sum(math.prod(plan.shapes[m]) for m in kind)
        pairs = len(kind) * (len(kind) - 1) if plan.method.alignment_weight(kind, plan.agents) else 0
        trained = ACTIVATIONS * batch * sample + LOGITS * pairs * batch * (batch + HARD_NEGATIVES)
        peak = max(peak, stack * max(trained, SAMPLES * sample) * item)
    return peak
