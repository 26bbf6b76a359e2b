"""The agents of a job: their ids, what each holds, and which of them a key of the job means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from parse_mpi.job import Encoder, Job
from parse_mpi.job.agents import AgentKind, Chosen, Share
from parse_mpi.seeding import stream

Blueprint: TypeAlias = tuple[tuple[str, ...], tuple[Encoder, ...]]


@dataclass(frozen=True)
class Agent:
    """One agent: its id, the modalities it holds, in the order of the data set, and its encoder of each.

    An agent that is away holds none.
    """

    id: int
    modalities: tuple[str, ...]
    encoders: tuple[Encoder, ...]

    @property
    def kind(self) -> str:
        """Agents of one kind hold the same modalities."""
        return "+".join(self.modalities)

    @property
    def blueprint(self) -> Blueprint:
        """Agents with the same blueprint have networks of the same shape."""
        return self.modalities, self.encoders

    def encoder(self, modality: str) -> Encoder:
        """Its encoder of a modality that it holds."""
        return self.encoders[self.modalities.index(modality)]


def encoder_of(job: Job, entry: AgentKind, modality: str) -> Encoder:
    """The encoder that an entry of the job's list has, or would have, for a modality."""
    return entry.encoders.get(modality, job.encoders.get(modality, job.encoder))


def encoder_key(job: Job, index: int, modality: str) -> tuple[str | int, ...]:
    """Where the job says so: the key path of what `encoder_of` its entry `index` gives."""
    if modality in job.agents[index].encoders:
        return "agents", index, "encoders", modality
    return ("encoders", modality) if modality in job.encoders else ("encoder",)


def make_agents(job: Job, modalities: Sequence[str]) -> tuple[Agent, ...]:
    """Agents with ids in the order of the job's list; `modalities`: all of the data set, in its order."""
    agents: list[Agent] = []
    for entry in job.agents:
        held = tuple(m for m in modalities if m in entry.modalities)
        encoders = tuple(encoder_of(job, entry, m) for m in held)
        agents += [Agent(len(agents) + k, held, encoders) for k in range(entry.count)]
    return tuple(agents)


def families(agents: Sequence[Agent], modality: str) -> tuple[Encoder, ...]:
    """The different encoders that agents have for a modality, in order of appearance: one for each family."""
    return tuple(dict.fromkeys(agent.encoder(modality) for agent in agents if modality in agent.modalities))


def work_of(eras: Sequence[Sequence[Agent]], rounds: Sequence[int]) -> NDArray[np.int64]:
    """The work of each agent in a run, int64 [A]: a unit for each modality that it holds in a round.

    That is what the time of a round grows with (docs/benchmarks.md, number of modalities).
    eras: all agents as they are in each. rounds: of each era.
    """
    held = [[len(agent.modalities) for agent in agents] for agents in eras]
    return np.array(rounds, np.int64) @ np.array(held, np.int64)


def kind_numbers(eras: Sequence[Sequence[Agent]]) -> NDArray[np.int64]:
    """A number for what each agent holds first, and when, int64 [A], ordered by the kind's name.

    Those who never take part have the last. eras: all agents as they are in each.
    """
    first: dict[int, tuple[str, int]] = {}
    for era, agents in enumerate(eras):
        for agent in agents:
            if agent.modalities:
                first.setdefault(agent.id, (agent.kind, era))
    number = {kind: k for k, kind in enumerate(sorted(set(first.values())))}
    return np.array([number.get(first.get(agent.id, ("", 0)), len(number)) for agent in eras[0]], np.int64)


def choose(chosen: Chosen, agents: Sequence[Agent], seed: int, purpose: str, index: int) -> tuple[int, ...]:
    """Ascending ids of the agents that `chosen` means; a share is drawn from (seed, purpose, index).

    Raises ValueError, worded for the user, where an id does not exist or nobody holds what is asked for.
    """
    if not isinstance(chosen, Share):
        if unknown := [i for i in chosen if i >= len(agents)]:
            raise ValueError(f"there is no agent {unknown[0]}; ids go from 0 to {len(agents) - 1}")
        return tuple(sorted(set(chosen)))
    candidates = [a.id for a in agents if chosen.holding is None or set(a.modalities) == set(chosen.holding)]
    if not candidates:
        raise ValueError(f"no agent holds exactly {', '.join(chosen.holding or ())}")
    count = max(1, round(chosen.fraction * len(candidates)))
    drawn = stream(seed, purpose, index).permutation(candidates)[:count]
    return tuple(sorted(drawn.tolist()))
