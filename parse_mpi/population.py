"""The agents of a job: their ids, what each holds, and which of them a key of the job means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parse_mpi.job.agents import Chosen, Share
from parse_mpi.seeding import stream


@dataclass(frozen=True)
class Agent:
    """One agent: its id and the modalities it holds, in the order of the data set; none while it is away."""

    id: int
    modalities: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Agents of one kind hold the same modalities."""
        return "+".join(self.modalities)


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
