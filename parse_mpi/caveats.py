"""What is allowed but worth knowing before a run: `plan` and the run itself say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from parse_mpi.data.dataset import TEST, TRAIN, VALIDATION, Dataset
from parse_mpi.plan import Plan

MUCH_TAKEN = 2_000_000_000  # bytes of rows that all agents together take in a round: half a second on one core


def caveats(plan: Plan, dataset: Dataset) -> list[str]:
    """Empty splits, classes that nobody trains on, means of too many, slices that never mix, and events that come too
    late, end a modality or cut a graph up."""
    return [*_of_data(plan, dataset), *_of_exact_means(plan), *_of_rare_slices(plan), *_of_events(plan)]


def _of_data(plan: Plan, dataset: Dataset) -> Iterator[str]:
    for name, split in (("validation", VALIDATION), ("test", TEST)):
        if not len(dataset.indices(split)):
            yield f"{dataset.name} has no {name} samples: accuracy on them is not reported"
    trained = np.bincount(dataset.labels[dataset.indices(TRAIN)], minlength=plan.class_count)
    if missing := np.flatnonzero(trained == 0).tolist():
        names = ", ".join(dataset.class_names[c] for c in missing[:8]) + (", …" if len(missing) > 8 else "")
        yield f"no training sample has the class {names}: no agent can learn it"


def _of_exact_means(plan: Plan) -> Iterator[str]:
    """Every holder takes the rows of all others, so that work grows with the square of their number."""
    if plan.job.method.aggregate == "exact":
        taken = (len(graph.at(0).neighbours) * plan.row_bytes(name) for name, graph in plan.graphs.items())
        if (total := sum(taken)) > MUCH_TAKEN:
            yield (
                f"aggregate: exact has every agent take the rows of all others, {total / 1e9:,.1f} GB a round in all; "
                "the time of a round grows with the square of the number of agents"
            )


def _of_rare_slices(plan: Plan) -> Iterator[str]:
    """Slices that mix every so many rounds, where the run, or their stage of it, is too short for one of those."""
    rounds, turns = plan.job.train.rounds, Counter[tuple[str, int]]()
    for era, end in zip(plan.eras, [*(era.start for era in plan.later), rounds], strict=True):
        for spec in era.slices:
            if spec.graph and spec.every > 1:
                turns[spec.name, spec.every] += max(0, min(end, rounds) // spec.every - era.start // spec.every)
    for name, every in (slice_ for slice_, count in turns.items() if not count):
        yield f"{name} mixes in rounds that are multiples of {every}, and this run has none for it: it never mixes"


def _of_events(plan: Plan) -> Iterator[str]:
    rounds = plan.job.train.rounds
    if late := [era.start for era in plan.later if era.start >= rounds]:
        yield f"train.rounds is {rounds}: what happens after round {late[0]} or later is not part of this run"
    for before, era in pairwise(plan.eras):
        held = {m for agent in era.agents for m in agent.modalities}
        for m in plan.shapes:
            if m not in held and any(m in agent.modalities for agent in before.agents):
                yield f"after round {era.start} nobody holds {m}: what was learnt of it is lost"
    told: set[tuple[str, int]] = set()
    for era in plan.eras:
        for graph in era.graphs.values():
            pieces = len(graph.components())
            if graph.without and pieces > len(graph.groups) and (graph.name, pieces) not in told:
                told.add((graph.name, pieces))
                yield f"after round {era.start} graph {graph.name!r} is in {pieces} pieces, with links that are cut"
