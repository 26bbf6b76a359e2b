"""Evaluation after mixing: every agent on the common validation and test splits (method.md 1.7).

Shapes: A local agents, C classes, n samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from parse_mpi.agents.engines import Unit
from parse_mpi.agents.group import AgentGroup
from parse_mpi.agents.samples import Inputs
from parse_mpi.data.dataset import TEST, VALIDATION
from parse_mpi.measures.accuracy import WEIGHTINGS, accuracies
from parse_mpi.model.heads import prediction_names
from parse_mpi.plan import Plan

SPLITS = ("validation", "test")
SAMPLES = 256  # evaluated at a time: bounds the memory of activations


class Evaluator:
    """Every agent on the evaluation samples, in the modalities that it holds and as its sensors deliver them.

    Modalities that fit into memory lie on the device; others are read a chunk at a time, in every evaluation. `local`
    weights are the class frequencies of all training samples that an agent holds, also of those that are unlabelled
    or have yet to arrive: one yardstick for the whole run. With `evaluate.test: false` the test split counts as empty.
    """

    def __init__(self, plan: Plan, group: AgentGroup, inputs: Inputs):
        labels = inputs.dataset.labels
        self.plan = plan
        self.group = group
        self.inputs = inputs
        self.names = prediction_names(list(plan.shapes))
        test = inputs.dataset.indices(TEST) if plan.job.evaluate.test else np.empty(0, np.int64)
        self.index = [inputs.dataset.indices(VALIDATION), test]
        self.y = [torch.from_numpy(labels[index]).to(group.device) for index in self.index]
        self.samples_C = [np.bincount(labels[index], minlength=plan.class_count) for index in self.index]
        held = {m for agent in group.agents for m in agent.modalities}
        self.held = [m for m in plan.shapes if m in held]
        kept = [m for m in self.held if inputs.in_memory(m)]
        self.x = [{m: self._on_device(inputs.clean(m, index)) for m in kept} for index in self.index]
        trained = [np.bincount(labels[plan.samples[a.id]], minlength=plan.class_count) for a in group.agents]
        self.trained_AC = np.array(trained)

    def accuracy(self) -> NDArray[np.float64]:
        """[A, split, weighting, prediction]; nan where an agent lacks the slice of a prediction."""
        made = np.full((len(self.group.agents), len(SPLITS), len(WEIGHTINGS), len(self.names)), np.nan)
        for split, index in enumerate(self.index):
            if not len(index):
                continue
            for unit, correct in zip(self.group.engine.units, self._correct(split), strict=True):
                agents = np.atleast_1d(unit.index.cpu().numpy())
                for name, correct_AC in correct.items():
                    made[agents, split, :, self.names.index(name)] = accuracies(
                        correct_AC, self.samples_C[split], self.trained_AC[agents]
                    )
        return made

    def labels(self, split: int) -> NDArray[np.int64]:
        """The true classes of a split."""
        return self.inputs.dataset.labels[self.index[split]]

    def parts(self, split: int, step: int = 1) -> Iterator[slice]:
        """Every `step`-th sample of a split, at most SAMPLES of them at a time."""
        count = len(self.index[split])
        for start in range(0, count, step * SAMPLES):
            yield slice(start, min(start + step * SAMPLES, count), step)

    def seen(
        self, split: int, part: slice, units: Sequence[Unit]
    ) -> Iterator[tuple[Unit, dict[str, torch.Tensor], bool]]:
        """What the agents of each unit see of a part of a split, by modality, and whether all see the same.

        [n, *sample], or [(A,) n, *sample] where they do not. What all see is read once for all units.
        """
        held = {m for unit in units for m in unit.modalities}
        clean = {m: self._clean(split, m, part) for m in self.held if m in held}
        for unit in units:
            yield unit, *self._seen(unit, clean, self.index[split][part])

    def _correct(self, split: int) -> list[dict[str, NDArray[np.int64]]]:
        """Right predictions per class [A, C] by prediction name, for every unit of the engine."""
        units = self.group.engine.units
        totals: list[dict[str, torch.Tensor]] = [{} for _ in units]
        for part in self.parts(split):
            y = self.y[split][part]
            one_hot = torch.nn.functional.one_hot(y, self.plan.class_count).float()
            for (unit, x, shared), total in zip(self.seen(split, part, units), totals, strict=True):
                for name, values in self.group.engine.predict(unit, x, shared).items():
                    # CUDA has no product of integers; sums of SAMPLES ones are exact in float32.
                    right = ((values.argmax(-1) == y).float().reshape(-1, len(y)) @ one_hot).long()
                    total[name] = total[name] + right if name in total else right
        return [{name: right.cpu().numpy() for name, right in total.items()} for total in totals]

    def _clean(self, split: int, modality: str, part: slice) -> torch.Tensor:
        if modality in self.x[split]:
            return self.x[split][modality][part]
        return self._on_device(self.inputs.clean(modality, self.index[split][part]))

    def _seen(
        self, unit: Unit, clean: Mapping[str, torch.Tensor], index: NDArray[np.int64]
    ) -> tuple[dict[str, torch.Tensor], bool]:
        """What a unit's agents see, by modality, and whether that is the same [n, ...] for all or [(A,) n, ...]."""
        ids = np.atleast_1d(self.group.ids[unit.index.cpu().numpy()]).tolist()
        poor = [m for m in unit.modalities if any((agent, m) in self.plan.sensors for agent in ids)]
        if not poor:
            return {m: clean[m] for m in unit.modalities}, True
        agents = unit.index.shape
        x = {m: clean[m].expand(*agents, *clean[m].shape) for m in unit.modalities}
        for m in poor:
            values = self.inputs.clean(m, index)
            seen = np.stack([self.inputs.through_sensor(agent, m, values, index) for agent in ids])
            x[m] = self._on_device(seen).reshape(*agents, *values.shape)
        return x, False

    def _on_device(self, x: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(x).to(self.group.device, getattr(torch, self.plan.job.dtype))
