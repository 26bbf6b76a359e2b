"""The training samples of a rank's agents and the common evaluation samples, on the device once.

Shapes: A local agents, B batch, n samples, `sample` the shape of one sample of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.data.dataset import Dataset
from parse_mpi.plan import Plan
from parse_mpi.population import Agent


@dataclass(frozen=True)
class Standardisation:
    """x -> (x - mean) / scale, per modality with the shape of one sample, float32; equal on all agents."""

    mean: Mapping[str, NDArray[np.float32]]
    scale: Mapping[str, NDArray[np.float32]]

    def apply(self, modality: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised samples [n, *sample] as a new float32 array."""
        return (x - self.mean[modality]) / self.scale[modality]


class AgentSamples:
    """Training samples of the local agents: an agent's samples of a modality stand together.

    x: modality -> [n, *sample]; y int64 [n_all]; start: modality -> int64 [A], where each agent's samples begin.
    """

    def __init__(
        self, plan: Plan, agents: list[Agent], dataset: Dataset, scaling: Standardisation, device: torch.device
    ):
        dtype = getattr(torch, plan.job.dtype)
        self.x: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        for m in plan.shapes:
            held = [plan.samples[agent.id] if m in agent.modalities else plan.samples[agent.id][:0] for agent in agents]
            if any(m in agent.modalities for agent in agents):
                x = scaling.apply(m, dataset.modalities[m][np.concatenate(held)])
                self.x[m] = torch.from_numpy(x).to(device, dtype)
                self.start[m] = _starts(held, device)
        held = [plan.samples[agent.id] for agent in agents]
        self.y = torch.from_numpy(dataset.labels[np.concatenate(held)]).to(device)
        self.y_start = _starts(held, device)

    def gather(self, agents: Tensor, modalities: tuple[str, ...], position: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """x: modality -> [..., B, *sample] and y [..., B] for local agent indices [...] and positions [..., B]."""
        x = {m: self.x[m][self.start[m][agents].unsqueeze(-1) + position] for m in modalities}
        return x, self.y[self.y_start[agents].unsqueeze(-1) + position]


def _starts(parts: list[NDArray[np.int64]], device: torch.device) -> Tensor:
    lengths = np.array([len(part) for part in parts], np.int64)
    return torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
