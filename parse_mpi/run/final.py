"""A close look at every agent after the last round: the table `final` of the metrics (method.md 1.7).

Shapes: A agents, n samples of the larger split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from parse_mpi.measures.classification import calibration_error, macro_f1
from parse_mpi.measures.retrieval import MEASURES
from parse_mpi.plan import Plan
from parse_mpi.run.assembly import Assembly
from parse_mpi.run.crossmodal import cross_modal
from parse_mpi.run.evaluation import SPLITS, Evaluator
from parse_mpi.storage.layout import Array, Attribute

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

Table = tuple[dict[str, Array], dict[str, dict[str, Attribute]]]
NARROW = 1 << 15  # classes that an int16 tells apart


def close_look(world: World, plan: Plan, now: Assembly, done: int) -> Table:
    """Data sets and attributes of the table on rank 0, by agent id, so that ranks decide nothing; nothing elsewhere.

    All ranks call it together after `done` rounds, the last. plan: of the whole run, with all its eras.
    """
    here = np.flatnonzero(plan.rank_of == world.rank)  # whether they take part or are away
    row = np.searchsorted(here, now.group.ids)
    known = {name: _spread(values, row, len(here)) for name, values in _of_agents(now.evaluator).items()}
    if not plan.job.evaluate.predictions:
        known = {name: values for name, values in known.items() if name not in ("predicted", "confidence")}
    collected = {name: world.collect_agents(here, values) for name, values in known.items()}
    pairs, scores = cross_modal(world, now)
    if world.rank:
        return {}, {}
    arrays: dict[str, Array] = {f"final/{name}": found[1] for name, found in collected.items() if found}
    arrays |= _of_samples(now.evaluator)
    arrays["final/gradient_steps"] = gradient_steps(plan, done)
    attributes = _attributes(arrays, done)
    if pairs:
        arrays["final/retrieval"] = scores
        attributes["final/retrieval"] = {
            "dimensions": ["pair", "measure"],
            "measure": list(MEASURES),
            "query_agent": np.array([pair.query for pair in pairs]),
            "gallery_agent": np.array([pair.gallery for pair in pairs]),
            "query_modality": [pair.asks for pair in pairs],
            "gallery_modality": [pair.answers for pair in pairs],
        }
    return arrays, attributes


def gradient_steps(plan: Plan, rounds: int) -> NDArray[np.int64]:
    """Local gradient steps of every agent in the first `rounds` rounds of the run, int64 [A]."""
    steps = np.zeros(len(plan.agents), np.int64)
    eras = [era for era in plan.eras if era.start < rounds]
    for era, end in zip(eras, [*(later.start for later in eras[1:]), rounds], strict=True):
        taken = era.method.gradient_steps(end - era.start, plan.job.train.local_steps)
        learners = [a.id for a in era.agents if a.modalities and era.method.learns(a.modalities)]
        steps[learners] += taken
    return steps


def _of_agents(evaluator: Evaluator) -> dict[str, Array]:
    """What is known of every local agent that takes part, by name [A, split(, n)]."""
    agents, counts = len(evaluator.group.agents), [len(index) for index in evaluator.index]
    dtype = np.int16 if evaluator.plan.class_count <= NARROW else np.int32
    predicted = np.full((agents, len(SPLITS), max(counts)), -1, dtype)
    confidence = np.full(predicted.shape, np.nan, np.float32)
    f1, error = np.full((agents, len(SPLITS)), np.nan), np.full((agents, len(SPLITS)), np.nan)
    for split, count in enumerate(counts):
        _predict(evaluator, split, predicted[:, split], confidence[:, split])
        label = evaluator.labels(split)
        for k in range(agents):
            made = predicted[k, split, :count]
            f1[k, split] = macro_f1(label, made)
            error[k, split] = calibration_error(made == label, confidence[k, split, :count])
    return {"predicted": predicted, "confidence": confidence, "macro_f1": f1, "calibration_error": error}


def _predict(evaluator: Evaluator, split: int, predicted_An: Array, confidence_An: Array) -> None:
    """Fill in the class that each agent's ensemble predicts for the samples of a split, and its probability."""
    engine = evaluator.group.engine
    for part in evaluator.parts(split):
        for unit, x, shared in evaluator.seen(split, part, engine.units):
            logits = engine.predict(unit, x, shared)["ensemble"]
            agents = unit.index.cpu().numpy()
            predicted_An[agents, part] = logits.argmax(-1).cpu().numpy()
            confidence_An[agents, part] = logits.softmax(-1).amax(-1).cpu().numpy()


def _spread(values: Array, row: NDArray[np.int64], count: int) -> Array:
    """Values [A, ...] of agents that take part as rows of `count` agents; nan, or -1, for those that are away."""
    whole = np.full((count, *values.shape[1:]), -1 if values.dtype.kind == "i" else np.nan, values.dtype)
    whole[row] = values
    return whole


def _of_samples(evaluator: Evaluator) -> dict[str, Array]:
    """Which samples the splits have [split, n], and their classes."""
    most = max(map(len, evaluator.index))
    sample = np.full((len(SPLITS), most), -1, np.int64)
    label = np.full((len(SPLITS), most), -1, np.int16 if evaluator.plan.class_count <= NARROW else np.int32)
    for split, index in enumerate(evaluator.index):
        sample[split, : len(index)], label[split, : len(index)] = index, evaluator.labels(split)
    return {"final/label": label, "final/sample": sample}


def _attributes(arrays: dict[str, Array], done: int) -> dict[str, dict[str, Attribute]]:
    """The names of all axes, and after which round this was."""
    axes = {
        "final/predicted": ["agent", "split", "sample"],
        "final/confidence": ["agent", "split", "sample"],
        "final/label": ["split", "sample"],
        "final/sample": ["split", "sample"],
        "final/macro_f1": ["agent", "split"],
        "final/calibration_error": ["agent", "split"],
    }
    attributes: dict[str, dict[str, Attribute]] = {
        name: {"dimensions": dimensions, "split": list(SPLITS)} for name, dimensions in axes.items() if name in arrays
    }
    attributes["final"] = {"round": done}
    return attributes
