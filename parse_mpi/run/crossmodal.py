"""Retrieval across modalities after the last round: does one modality find the event that another one saw?

What is compared is the latent vector that the method wants alike across modalities (Method.shared_latent), on test
samples, which are common to all agents. An agent with several modalities asks itself. An agent that holds one modality
alone asks an agent that holds another one alone: they share no encoder, and the vectors of the second are gathered
from the rank where it lives. These are evaluation on the common split, as accuracies are, and no training data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parse_mpi.agents.engines import Unit
from parse_mpi.measures.retrieval import MEASURES, retrieval
from parse_mpi.plan import Plan
from parse_mpi.population import Agent
from parse_mpi.run.assembly import Assembly
from parse_mpi.run.evaluation import SPLITS, Evaluator
from parse_mpi.storage.layout import Array

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

MOST_SAMPLES = 1000  # of the test split
MOST_PAIRS = 16  # of agents, for each ordered pair of modalities
TEST = SPLITS.index("test")


class Pair(NamedTuple):
    """An agent asks with what it makes of one modality, and one, maybe the same, answers with another modality."""

    query: int
    gallery: int
    asks: str
    answers: str


def pairs_of(agents: Sequence[Agent]) -> list[Pair]:
    """Agents on their own with each ordered pair of their modalities, then the k-th agents of one modality each.

    Of every ordered pair of modalities the first MOST_PAIRS of either sort.
    """
    return [*_own_pairs(agents), *_pairs_between(agents)]


def _own_pairs(agents: Sequence[Agent]) -> Iterator[Pair]:
    taken: Counter[tuple[str, str]] = Counter()
    for agent in agents:
        for asks, answers in permutations(agent.modalities, 2):
            taken[asks, answers] += 1
            if taken[asks, answers] <= MOST_PAIRS:
                yield Pair(agent.id, agent.id, asks, answers)


def _pairs_between(agents: Sequence[Agent]) -> Iterator[Pair]:
    alone: dict[str, list[int]] = {}
    for agent in agents:
        if len(agent.modalities) == 1:
            alone.setdefault(agent.modalities[0], []).append(agent.id)
    for asks, answers in permutations(alone, 2):
        for query, gallery in zip(alone[asks][:MOST_PAIRS], alone[answers][:MOST_PAIRS], strict=False):
            yield Pair(query, gallery, asks, answers)


def cross_modal(world: World, now: Assembly) -> tuple[list[Pair], NDArray[np.float64]]:
    """Pairs and what MEASURES names of each [pair, measure], on rank 0; all ranks call it together.

    None without test samples, and where the method has no such latent vectors. Of more than MOST_SAMPLES test samples
    every second is taken, or every third, and so on.
    """
    evaluator, pairs = now.evaluator, pairs_of(now.plan.agents)
    step = max(1, -(-len(evaluator.index[TEST]) // MOST_SAMPLES))
    label = evaluator.labels(TEST)[::step]
    if not len(label):
        return [], np.empty((0, len(MEASURES)))
    numbers: dict[int, list[int]] = {}
    for number, pair in enumerate(pairs):
        numbers.setdefault(pair.query, []).append(number)
    made: dict[int, NDArray[np.float64]] = {}
    alone: dict[int, Array] = {}
    for unit, agents in _units(now, numbers.keys()):
        latent = _latent(evaluator, unit, step)
        if latent is None:
            continue
        for k, agent in agents.items():
            of = dict(zip(unit.modalities, latent[k], strict=True))
            if len(of) == 1:
                alone[agent] = latent[k, 0]
                continue
            for number in numbers[agent]:
                made[number] = retrieval(of[pairs[number].asks], of[pairs[number].answers], label)
    galleries = _gathered(world, now.plan, alone, len(label))
    for agent, query in alone.items():
        for number in numbers[agent]:
            made[number] = retrieval(query, galleries[pairs[number].gallery], label)
    return _collected(world, pairs, made)


def _units(now: Assembly, wanted: Set[int]) -> Iterator[tuple[Unit, dict[int, int]]]:
    """Units with agents that are wanted: the place of each in its unit, and its id."""
    for unit in now.group.engine.units:
        ids = np.atleast_1d(now.group.ids[unit.index.cpu().numpy()]).tolist()
        if found := {k: agent for k, agent in enumerate(ids) if agent in wanted}:
            yield unit, found


def _latent(evaluator: Evaluator, unit: Unit, step: int) -> Array | None:
    """What a unit's agents make of every `step`-th test sample: [A, M, n, d], or None."""
    parts = []
    for part in evaluator.parts(TEST, step):
        for _, x, shared in evaluator.seen(TEST, part, [unit]):
            latent = evaluator.group.engine.latent(unit, x, shared)
            if latent is None:
                return None
            parts.append(latent.reshape(-1, *latent.shape[-3:]).cpu().numpy())
    return np.concatenate(parts, axis=2)


def _gathered(world: World, plan: Plan, alone: dict[int, Array], count: int) -> dict[int, Array]:
    """The latent vectors [n, d] of all ranks' agents, by id."""
    width = max(world.all_json(next((latent.shape[1] for latent in alone.values()), 0)))
    ids = np.array(sorted(alone), np.int64)
    rows = np.zeros((len(ids), count, width), plan.job.dtype)
    for row, agent in zip(rows, ids.tolist(), strict=True):
        row[:] = alone[agent]
    return dict(zip(world.gather_agents(ids, ids).tolist(), world.gather_agents(ids, rows), strict=True))


def _collected(
    world: World, pairs: Sequence[Pair], made: dict[int, NDArray[np.float64]]
) -> tuple[list[Pair], NDArray[np.float64]]:
    """The pairs of all ranks that could be compared, in their order, and their scores, on rank 0."""
    numbers = np.array(sorted(made), np.int64)
    scores = np.array([made[number] for number in numbers.tolist()]).reshape(-1, len(MEASURES))
    collected = world.collect_agents(numbers, scores)
    return ([pairs[k] for k in collected[0]], collected[1]) if collected else ([], scores)
