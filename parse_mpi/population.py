"""The agents of a job: their ids, what each holds, and which of them a key of the job means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parse_mpi.job import Encoder, Job
from parse_mpi.job.agents import Chosen, Share
from parse_mpi.seeding import stream


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
    def blueprint(self) -> tuple[tuple[str, ...], tuple[Encoder, ...]]:
        """Agents with the same blueprint have networks of the same shape."""
        return self.modalities, self.encoders


def make_agents(job: Job, modalities: Sequence[str]) -> tuple[Agent, ...]:
    """Agents with ids in the order of the job's list; `modalities`: all of the data set, in its order."""
    agents: list[Agent] = []
    for entry in job.agents:
        held = tuple(m for m in modalities if m in entry.modalities)
        encoders = (job.encoder,) * len(held)
        agents += [Agent(len(agents) + k, held, encoders) for k in range(entry.count)]
    return tuple(agents)


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
