"""The samples of a rank's agents: as their sensors deliver them, and the training samples by batch.

Shapes: A local agents, B batch, N samples, `sample` the shape of one sample of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.data.dataset import Dataset
from parse_mpi.data.labels import known_labels
from parse_mpi.data.normalise import FARTHEST
from parse_mpi.plan import Plan
from parse_mpi.population import Agent


@dataclass(frozen=True)
class Standardisation:
    """x -> (x - mean) / scale, kept within FARTHEST; per modality, float32 of a sample's shape, equal on all agents."""

    mean: Mapping[str, NDArray[np.float32]]
    scale: Mapping[str, NDArray[np.float32]]

    def apply(self, modality: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised samples [n, *sample] as a new float32 array."""
        made: NDArray[np.float32] = (x - self.mean[modality]) / self.scale[modality]
        return np.clip(made, -FARTHEST, FARTHEST, out=made)


class Inputs:
    """What the agents of a plan see of a data set."""

    def __init__(self, plan: Plan, dataset: Dataset, scaling: Standardisation):
        self.plan = plan
        self.dataset = dataset
        self.scaling = scaling

    def in_memory(self, modality: str) -> bool:
        return isinstance(self.dataset.modalities[modality], np.ndarray)

    def clean(self, modality: str, index_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """The samples `index` of the data set, standardised; float32 [N, *sample]."""
        return self.scaling.apply(modality, self.dataset.modalities[modality][index_N])

    def through_sensor(
        self, agent: int, modality: str, clean: NDArray[np.float32], index_N: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Clean samples as the agent's sensor delivers them: the same array unless that is a poor one."""
        sensor = self.plan.sensors.get((agent, modality))
        return sensor.distort(clean, index_N, self.plan.job.seed) if sensor else clean

    def seen(self, agents_N: NDArray[np.int64], modality: str, index_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Samples, each as the sensor of its own agent (ids `agents_N`) delivers it; float32 [N, *sample]."""
        x = self.clean(modality, index_N)
        for agent in np.unique(agents_N).tolist():
            own = agents_N == agent
            if (agent, modality) in self.plan.sensors:
                x[own] = self.through_sensor(agent, modality, x[own], index_N[own])
        return x

    def labels(self, agent: int) -> NDArray[np.int64]:
        """The labels of an agent's training samples, UNLABELLED where it does not know them."""
        job, own = self.plan.job, self.plan.samples[agent]
        return known_labels(self.dataset.labels[own], own, agent, job.data.labelled_fraction, job.seed)


class AgentSamples:
    """Training samples of the local agents. Labels lie on the device, and so do modalities that fit into memory."""

    def __init__(self, agents: Sequence[Agent], inputs: Inputs, device: torch.device):
        plan = inputs.plan
        self.x: dict[str, OnDevice | InFile] = {}
        for m in plan.shapes:
            held = [agent.id if m in agent.modalities else None for agent in agents]
            if any(agent is not None for agent in held):
                self.x[m] = (OnDevice if inputs.in_memory(m) else InFile)(m, held, inputs, device)
        labels = [np.empty(0, np.int64), *(inputs.labels(agent.id) for agent in agents)]
        self.y = torch.from_numpy(np.concatenate(labels)).to(device)
        self.y_start = torch.from_numpy(_starts([plan.samples[agent.id] for agent in agents])).to(device)

    def gather(self, agents: Tensor, modalities: tuple[str, ...], position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """x: modality -> [..., B, *sample] and y [..., B] for local agent indices [...] and positions [..., B]."""
        x = {m: self.x[m].gather(agents, position) for m in modalities}
        return x, self.y[self.y_start[agents].unsqueeze(-1) + position]


class OnDevice:
    """One modality of the local agents, on the device once: an agent's samples stand together.

    held: per local agent its id, or None where it lacks the modality.
    """

    def __init__(self, modality: str, held: Sequence[int | None], inputs: Inputs, device: torch.device):
        agents_N, index_N, starts = _lined_up(held, inputs)
        x = inputs.seen(agents_N, modality, index_N)
        self._x = torch.from_numpy(x).to(device, getattr(torch, inputs.plan.job.dtype))
        self._start = torch.from_numpy(starts).to(device)

    def gather(self, agents: Tensor, position: Tensor) -> Tensor:
        """[..., B, *sample] for local agent indices [...] and positions [..., B]."""
        return self._x[self._start[agents].unsqueeze(-1) + position]


class InFile:
    """The same, read from the data file batch by batch."""

    def __init__(self, modality: str, held: Sequence[int | None], inputs: Inputs, device: torch.device):
        self._agents_N, self._index_N, self._start = _lined_up(held, inputs)
        self._modality = modality
        self._inputs = inputs
        self._device = device

    def gather(self, agents: Tensor, position: Tensor) -> Tensor:
        place = self._start[agents.cpu().numpy()][..., None] + position.cpu().numpy()
        x = self._inputs.seen(self._agents_N[place.ravel()], self._modality, self._index_N[place.ravel()])
        dtype = getattr(torch, self._inputs.plan.job.dtype)
        return torch.from_numpy(x).to(self._device, dtype).reshape(*position.shape, *x.shape[1:])


def _lined_up(
    held: Sequence[int | None], inputs: Inputs
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of all samples of a modality, one agent after another: whose it is [N], its index in the data set [N], and where
    each agent's begin [A]."""
    parts = [inputs.plan.samples[agent] if agent is not None else np.empty(0, np.int64) for agent in held]
    ids = [-1 if agent is None else agent for agent in held]
    return np.repeat(ids, [len(part) for part in parts]), np.concatenate(parts), _starts(parts)


def _starts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = np.array([len(part) for part in parts], np.int64)
    return np.cumsum(lengths) - lengths
