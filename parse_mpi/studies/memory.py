"""How much memory a rank will need: worked out from the plan before anything starts.

The parts that grow with agents (rows, gradients, optimiser state, samples) are counted to the byte; what one process
costs before its first agent is a constant that was measured (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch

from parse_mpi.agents.engines import stack_size
from parse_mpi.agents.optimisers import slice_optimisers
from parse_mpi.agents.personal import KEPT, weight_state
from parse_mpi.data.dataset import TEST, VALIDATION, Dataset, size_bytes
from parse_mpi.data.sampler import widest_batch
from parse_mpi.exchange.mixing import BLOCK_BYTES
from parse_mpi.exchange.routing import Route, ghost_bound, make_route
from parse_mpi.plan import Plan
from parse_mpi.population import Agent
from parse_mpi.run.evaluation import SAMPLES, SPLITS

PROCESS_BYTES = 325_000_000  # Python, torch (CPU build), MPI, h5py and what a run imports, resident
SCIKIT_LEARN_BYTES = 70_000_000  # which only clusters need
ACTIVATIONS = 3  # copies of a layer's output that are alive at the peak: forward, backward, and one temporary
EVALUATED = 8  # copies of the widest layer's output that are alive in evaluation, where nothing is kept for a gradient
LOGITS = 6  # the same for the logits of the contrastive term, which go through more operations
PREDICTION_BYTES = 6  # a class and its probability
HARD_NEGATIVES = 4  # columns beside the batch's own


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank by part."""

    process: int
    data: int
    rows: int
    gradients: int
    optimiser: int
    checkpoint: int
    exchange: int
    activations: int
    predictions: int

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


def sent_bytes(plan: Plan, rank: int, routes: Mapping[str, Route]) -> int:
    """What a rank sends in the first round, all columns at once; routes: its `first_routes`."""
    rows = sum(len(route.send_rows) * plan.row_bytes(name) for name, route in routes.items())
    return rows + _messages_bytes(plan, rank)


def _messages_bytes(plan: Plan, rank: int) -> int:
    """What restriction maps have a rank's agents send to others in the first round; they receive as much."""
    total = 0
    for graph in plan.coupled_graphs:
        sender, receiver = plan.rank_of[graph.at(0).links()].T
        total += int(((sender == rank) & (receiver != rank)).sum()) * plan.message_bytes(graph.name)
    return total


def rank_memory(plan: Plan, dataset: Dataset, rank: int, routes: Mapping[str, Route]) -> RankMemory:
    """Estimate of the peak of one rank on a CPU; on a GPU `process` is host memory and the rest lies on the device.

    routes: the rank's `first_routes`.
    """
    item = plan.item_bytes
    local = {agent.id for agent in plan.agents_on(rank)}
    width = {spec.name: plan.layouts[spec.name].width for spec in plan.slices}
    held = {spec.name: len(local.intersection(spec.holders)) for spec in plan.slices}
    own = sum(held[name] * plan.travelling(name) for name in held) * item
    optimisers = slice_optimisers(plan.job.train, plan.slices)
    state, kept = {}, {}
    for spec in plan.slices:
        name, optimiser = spec.name, optimisers[spec.name]
        columns = optimiser.state(width[name]) | weight_state(plan.method, spec, width[name])
        state[name] = sum(columns.values()) + plan.map_columns(name)
        kept[name] = state[name] + (optimiser.scratch + KEPT * spec.personal) * width[name]
    ghosts, buffers = 0, 2 * _messages_bytes(plan, rank)
    for name, graph in plan.graphs.items():
        row = plan.row_bytes(name)
        ghosts += ghost_bound(graph, plan.rank_of, rank) * row
        buffers += (len(routes[name].ghosts) + len(routes[name].send_rows)) * row
    clusters = any(graph.clusters > 1 for graph in plan.graphs.values())
    return RankMemory(
        process=PROCESS_BYTES + (SCIKIT_LEARN_BYTES if clusters else 0),
        data=_data_bytes(plan, dataset, rank, item),
        rows=own * (2 if plan.job.train.order == "consensus" else 1),
        gradients=own,
        optimiser=sum(held[name] * kept[name] for name in held) * item,
        checkpoint=sum(held[name] * (plan.saved(name) + state[name]) for name in held) * item,
        exchange=ghosts + buffers + 3 * BLOCK_BYTES["cpu"],
        activations=_activation_bytes(plan, rank, item),
        predictions=_prediction_bytes(plan, dataset, rank),
    )


def _data_bytes(plan: Plan, dataset: Dataset, rank: int, item: int) -> int:
    """The data set as it was read, the local agents' samples and the evaluation samples of the modalities held; of
    modalities that stay in the file, nothing."""
    agents = plan.agents_on(rank)
    in_memory = {m: x for m, x in dataset.modalities.items() if isinstance(x, np.ndarray)}
    whole = sum(map(size_bytes, in_memory.values())) + dataset.labels.nbytes
    evaluated = sum(_evaluated(plan, dataset))
    mine = 0
    for m in in_memory:
        samples = sum(len(plan.samples[agent.id]) for agent in agents if m in agent.modalities)
        mine += (samples + (evaluated if samples else 0)) * math.prod(plan.shapes[m]) * item
    return whole + mine


def _evaluated(plan: Plan, dataset: Dataset) -> tuple[int, int]:
    """Samples of the two splits that agents are evaluated on."""
    return len(dataset.indices(VALIDATION)), len(dataset.indices(TEST)) if plan.job.evaluate.test else 0


def _prediction_bytes(plan: Plan, dataset: Dataset, rank: int) -> int:
    """What every agent predicts for every sample at the end: of the rank's own agents, and on rank 0 of all."""
    of_agent = len(SPLITS) * max(_evaluated(plan, dataset)) * PREDICTION_BYTES
    gathered = len(plan.agents) if rank == 0 and plan.job.evaluate.predictions else 0
    return 2 * (len(plan.agents_on(rank)) + gathered) * of_agent


def _activation_bytes(plan: Plan, rank: int, item: int) -> int:
    """The largest stack of agents in its forward and backward pass, or in evaluation."""
    stacked = plan.job.mode == "fast" and plan.job.engine != "loop"
    local = plan.agents_on(rank)
    sizes = plan.sizes()[[agent.id for agent in local]]
    batch = widest_batch(sizes, plan.job.train.batch_size, streamed=plan.job.data.stream is not None)
    peak = 0
    for model in plan.models:
        kind = model.modalities
        agents = sum(agent.blueprint == model.blueprint for agent in local)
        stack = min(agents, stack_size(plan, model, torch.device("cpu")) if stacked else 1)
        sample, widest = values_of_a_sample(plan, model)
        pairs = len(kind) * (len(kind) - 1) if plan.alignment_weights[kind] else 0
        trained = ACTIVATIONS * batch * sample + LOGITS * pairs * batch * (batch + HARD_NEGATIVES)
        peak = max(peak, stack * max(trained, EVALUATED * SAMPLES * widest) * item)
    return peak


def values_of_a_sample(plan: Plan, agent: Agent) -> tuple[int, int]:
    """How many numbers a sample is and becomes on its way through an agent's network: in all, and in one layer."""
    sizes = [*(math.prod(plan.shapes[m]) for m in agent.modalities), *plan.layer_sizes[agent.blueprint]]
    return sum(sizes), max(sizes)
