"""Poor sensors: agents whose samples of one modality are noisy or missing, in training and in evaluation.

What a sensor does to a sample is a function of (seed, agent, modality, sample): the same in every epoch, on every rank
and in batches of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parse_mpi.job import PoorSensor
from parse_mpi.job.agents import Share
from parse_mpi.population import Agent, choose
from parse_mpi.seeding import random_keys, stream


@dataclass(frozen=True)
class Sensor:
    """The poor sensor of one agent for one modality; see PoorSensor for `noise` and `missing`."""

    agent: int
    modality: str
    noise: float
    missing: float

    def distort(self, x: NDArray[np.float32], index: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
        """Standardised samples x [n, ...], the rows `index` [n] of the data set, as this sensor delivers them."""
        distorted = x.copy()
        if self.noise:
            for row, sample in enumerate(index.tolist()):
                draw = stream(seed, f"noise[{self.modality}]", self.agent, sample)
                distorted[row] += np.float32(self.noise) * draw.standard_normal(x.shape[1:], dtype=np.float32)
        keys = random_keys(seed, f"missing[{self.modality}]", np.asarray(self.agent), index)
        distorted[(keys >> np.uint64(11)) * 2.0**-53 < self.missing] = 0.0
        return distorted


def poor_sensors(
    entries: Sequence[PoorSensor], agents: Sequence[Agent], seed: int
) -> tuple[dict[tuple[int, str], Sensor], Mapping[int, str]]:
    """The poor sensors by agent and modality, and what is wrong with which entry, worded for the user."""
    found: dict[tuple[int, str], Sensor] = {}
    wrong: dict[int, str] = {}
    for number, entry in enumerate(entries):
        try:
            for agent in _concerned(entry, agents, seed, number):
                if (agent, entry.modality) in found:
                    raise ValueError(f"agent {agent}'s sensor of {entry.modality} is poor by another entry already")
                found[agent, entry.modality] = Sensor(agent, entry.modality, entry.noise, entry.missing)
        except ValueError as error:
            wrong[number] = str(error)
    return found, wrong


def _concerned(entry: PoorSensor, agents: Sequence[Agent], seed: int, number: int) -> tuple[int, ...]:
    holders = [agent for agent in agents if entry.modality in agent.modalities]
    if not holders:
        held = sorted({m for agent in agents for m in agent.modalities})
        raise ValueError(f"no agent holds the modality {entry.modality!r}; held are {', '.join(held)}")
    if isinstance(entry.agents, Share):
        return choose(entry.agents, holders, seed, "poor", number)
    chosen = choose(entry.agents, agents, seed, "poor", number)
    if without := sorted(set(chosen) - {agent.id for agent in holders}):
        raise ValueError(f"agent {without[0]} does not hold the modality {entry.modality!r}")
    return chosen
