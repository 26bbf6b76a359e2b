"""Evaluation after mixing: every agent on the common validation and test splits (method.md 1.7).

Shapes: A local agents, C classes, n samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from parse_mpi.agents.engines import Unit
from parse_mpi.agents.group import AgentGroup
from parse_mpi.agents.samples import Standardisation
from parse_mpi.data.dataset import TEST, VALIDATION, Dataset
from parse_mpi.measures.accuracy import WEIGHTINGS, accuracies
from parse_mpi.measures.consensus import consensus_distance
from parse_mpi.model.heads import prediction_names
from parse_mpi.plan import Plan

if TYPE_CHECKING:
    from parse_mpi.exchange.world import World

SPLITS = ("validation", "test")
SAMPLES = 256  # evaluated at a time: bounds the memory of activations
BLOCK_VALUES = 1 << 20  # float64 values gathered at a time for a consensus distance


class Evaluator:
    """Holds the evaluation samples on the device; every agent sees the modalities it holds."""

    def __init__(self, plan: Plan, group: AgentGroup, dataset: Dataset, scaling: Standardisation):
        held = {m for agent in group.agents for m in agent.modalities}
        self.plan = plan
        self.group = group
        self.names = prediction_names(list(plan.shapes))
        self.x, self.y, self.samples_C = [], [], []
        dtype = getattr(torch, plan.job.dtype)
        for split in (VALIDATION, TEST):
            index = dataset.indices(split)
            x = {m: scaling.apply(m, dataset.modalities[m][index]) for m in plan.shapes if m in held}
            self.x.append({m: torch.from_numpy(values).to(group.device, dtype) for m, values in x.items()})
            self.y.append(torch.from_numpy(dataset.labels[index]).to(group.device))
            self.samples_C.append(np.bincount(dataset.labels[index], minlength=plan.class_count))
        trained = [np.bincount(dataset.labels[plan.samples[a.id]], minlength=plan.class_count) for a in group.agents]
        self.trained_AC = np.array(trained)

    def accuracy(self) -> NDArray[np.float64]:
        """[A, split, weighting, prediction]; nan where an agent lacks the slice of a prediction."""
        made = np.full((len(self.group.agents), len(SPLITS), len(WEIGHTINGS), len(self.names)), np.nan)
        for unit in self.group.engine.units:
            agents = np.atleast_1d(unit.index.cpu().numpy())
            for split in range(len(SPLITS)):
                if not len(self.y[split]):
                    continue
                correct = self._correct(unit, split)
                for name, correct_AC in correct.items():
                    made[agents, split, :, self.names.index(name)] = accuracies(
                        correct_AC, self.samples_C[split], self.trained_AC[agents]
                    )
        return made

    def _correct(self, unit: Unit, split: int) -> dict[str, NDArray[np.int64]]:
        """Right predictions per class [A, C] of a unit's agents, by prediction name."""
        total: dict[str, torch.Tensor] = {}
        for start in range(0, len(self.y[split]), SAMPLES):
            part = slice(start, start + SAMPLES)
            y = self.y[split][part]
            one_hot = torch.nn.functional.one_hot(y, self.plan.class_count).float()
            logits = self.group.engine.predict(unit, {m: x[part] for m, x in self.x[split].items()})
            for name, values in logits.items():
                # CUDA has no product of integers; sums of SAMPLES ones are exact in float32.
                right = ((values.argmax(-1) == y).float().reshape(-1, len(y)) @ one_hot).long()
                total[name] = total[name] + right if name in total else right
        return {name: right.cpu().numpy() for name, right in total.items()}


def components(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """What a consensus distance is measured over: (slice, agents) for each connected component of its graph.

    A slice without a graph counts as one component: the distance then says how far its holders drifted apart.
    """
    parts = []
    for spec in plan.slices:
        graph = plan.graphs.get(spec.graph)
        groups = graph.components() if graph else [spec.holders]
        parts += [(spec.name, agents) for agents in groups if len(agents) > 1]
    return parts


def consensus_distances(world: World, plan: Plan, group: AgentGroup) -> NDArray[np.float64]:
    """Consensus distance [component] in the order of `components`, equal on all ranks."""
    return np.array([_distance(world, plan, group, name, agents) for name, agents in components(plan)])


def _distance(world: World, plan: Plan, group: AgentGroup, name: str, agents: tuple[int, ...]) -> float:
    held = group.slices.get(name)
    row = np.flatnonzero(np.isin(held.agents, agents)) if held else np.empty(0, np.int64)
    ids = held.agents[row] if held else row
    exact = plan.job.mode == "exact"

    def local(part: slice) -> NDArray[np.float64]:
        if held is None:
            return np.empty((0, part.stop - part.start))
        values: NDArray[np.float64] = held.local[torch.from_numpy(row), part].double().cpu().numpy()
        return values

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return world.sum_over_agents(ids, values, exact)

    width = plan.layouts[name].width
    return consensus_distance(width, max(1, BLOCK_VALUES // len(agents)), local, total, len(agents))
