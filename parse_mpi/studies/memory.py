"""How much memory a rank will need: worked out from the plan before anything starts.

The parts that grow with agents (rows, gradients, optimiser state, samples) are counted to the byte; what one process
costs before its first agent is a constant that was measured (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from parse_mpi.agents.engines import STACK
from parse_mpi.agents.optimisers import Sgd
from parse_mpi.data.dataset import TEST, VALIDATION, Dataset
from parse_mpi.exchange.mixing import BLOCK_BYTES
from parse_mpi.exchange.routing import ghost_bound, make_route
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import SAMPLES

PROCESS_BYTES = 395_000_000  # Python, torch (CPU build), MPI, h5py, scikit-learn and what a run imports, resident
ACTIVATIONS = 3  # copies of a layer's output that are alive at the peak: forward, backward, and one temporary


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


def rank_memory(plan: Plan, dataset: Dataset, rank: int) -> RankMemory:
    """Estimate of the peak of one rank on a CPU; on a GPU `process` is host memory and the rest lies on the device."""
    item = 4 if plan.job.dtype == "float32" else 8
    local = {agent.id for agent in plan.agents_on(rank)}
    width = {spec.name: plan.layouts[spec.name].width for spec in plan.slices}
    held = {spec.name: len(local.intersection(spec.holders)) for spec in plan.slices}
    own = sum(held[name] * width[name] for name in held) * item
    ghosts, buffers = 0, 0
    for name, graph in plan.graphs.items():
        row = sum(width[spec.name] for spec in plan.slices if spec.graph == name) * item
        route = make_route(graph.at(0), plan.rank_of, rank, [i for i in graph.agents if i in local])
        bound = ghost_bound(graph, plan.rank_of, rank)
        ghosts += bound * row
        buffers += (len(route.ghosts) + len(route.send_rows)) * row
    return RankMemory(
        process=PROCESS_BYTES,
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
    peak = 0
    for kind in plan.kinds:
        agents = sum(agent.modalities == kind for agent in plan.agents_on(rank))
        stack = min(agents, STACK) if stacked else min(agents, 1)
        batch = max(plan.job.train.batch_size * ACTIVATIONS, SAMPLES)
        inputs = sum(math.prod(plan.shapes[m]) for m in kind)
        peak = max(peak, stack * batch * (len(kind) * per_modality + inputs) * item)
    return peak
