"""Eras: the stretches of a run between events, in each of which who holds what and who can talk to whom is constant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parse_mpi.job import Job, Topology
from parse_mpi.job.events import Event, LinkEvent, PresenceEvent, SensorEvent
from parse_mpi.population import Agent, choose, encoder_of

Link = tuple[int, int]
Isolation = tuple[int, int]  # after so many rounds this agent was cut off, for good

ADDS = {"gain": True, "lose": False, "join": True, "leave": False, "cut": True, "heal": False}
WRONG = {
    "gain": "holds it already",
    "lose": "does not hold it",
    "join": "is here already",
    "leave": "is away",
    "cut": "is cut already",
    "heal": "is not cut",
}


@dataclass(frozen=True)
class Era:
    """From `start` finished rounds on: all agents by id, those that are away without modalities, and what is cut.

    what: the events that began it, in words. cut_links: pairs with the smaller id first.
    """

    start: int
    what: tuple[str, ...]
    agents: tuple[Agent, ...]
    cut_modalities: frozenset[str]
    cut_links: frozenset[Link]


def make_eras(
    job: Job, agents: Sequence[Agent], modalities: Sequence[str], isolated: Sequence[Isolation] = ()
) -> tuple[tuple[Era, ...], dict[int, str]]:
    """The eras of a job, and what is wrong with its events, by their index.

    agents: as the job lists them; modalities: all of the data set, in its order. A share of the agents means those
    that hold something in that list, and the same share means the same agents in every event. Events of one round
    happen in the order of the list, and what they leave behind must make sense when the last of them has happened.
    isolated: agents that are away from some round on, whatever events say of them. Stages of the method begin eras too.
    """
    concerned, problems = _concerned(job, agents, modalities)
    if problems:
        return (), problems
    order = sorted(range(len(job.events)), key=lambda k: job.events[k].round)
    course = _Course(job, agents, modalities)
    course.here -= _late((job.events[k], concerned[k]) for k in order)
    eras = {0: course.era(0, ())}
    stages = job.method.stages(job.train.rounds)
    for start in sorted({*stages, *(event.round for event in job.events), *(done for done, _ in isolated)}):
        indices = [k for k in order if job.events[k].round == start]
        for k in indices:
            if wrong := course.apply(job.events[k], concerned[k]):
                problems[k] = wrong
        for k in indices:
            if k not in problems and (wrong := course.check(job.events[k], concerned[k])):
                problems[k] = wrong
        cut_off = [i for done, i in isolated if done == start]
        course.isolated.update(cut_off)
        told = course.told((job.events[k], concerned[k]) for k in indices)
        began = [stages[start]] if start in stages else []
        eras[start] = course.era(start, (*began, *told, *([f"isolate: {_listed(cut_off)}"] if cut_off else [])))
    joins = [k for k in order if job.events[k].kind == "join"]
    if joins and not any(agent.modalities for agent in eras[0].agents):
        problems.setdefault(joins[0], "every agent joins later, so that nobody is there at the start")
    return tuple(eras.values()), dict(sorted(problems.items()))


def everyone(agents: Sequence[Agent], eras: Sequence[Era]) -> tuple[Agent, ...]:
    """The agents as the job lists them, then as they are in every era: whoever is in the run, with all encoders."""
    return (*agents, *(agent for era in eras for agent in era.agents))


class _Course:
    """What is so at some time of the run: sets of facts, to which events add and from which they take away."""

    def __init__(self, job: Job, agents: Sequence[Agent], modalities: Sequence[str]):
        self.job = job
        self.entries = [entry for entry in job.agents for _ in range(entry.count)]
        self.modalities = tuple(modalities)
        self.held = {(agent.id, m) for agent in agents for m in agent.modalities}
        self.here = {agent.id for agent in agents}
        self.isolated: set[int] = set()  # no event's fact, so that later events of these agents still make sense
        self.cut_modalities: set[str] = set()
        self.cut_links: set[Link] = set()

    def apply(self, event: Event, agents: Sequence[int]) -> str:
        """Make true what an event says; returns, worded for the user, what of it was so before, or ""."""
        facts, changed = self._facts(event, agents)
        wrong = sorted(changed & facts if ADDS[event.kind] else changed - facts)
        if ADDS[event.kind]:
            facts |= changed
        else:
            facts -= changed
        return f"after round {event.round} {_subject(event, wrong[0])} {WRONG[event.kind]}" if wrong else ""

    def check(self, event: Event, agents: Sequence[int]) -> str:
        """What an event must not have done together with the others of its round; "" if all is well."""
        if event.kind == "lose" and (bare := [i for i in agents if not self._modalities_of(i)]):
            return f"after round {event.round} agent {bare[0]} is left without a modality; let it leave (kind: leave)"
        if event.kind == "leave" and not self.here:
            return f"after round {event.round} no agent is left"
        return ""

    def told(self, events: Iterable[tuple[Event, Sequence[int]]]) -> Iterator[str]:
        """Events in words, as far as they concern agents that are not isolated."""
        for event, agents in events:
            left = [i for i in agents if i not in self.isolated]
            if left or isinstance(event, LinkEvent):
                yield describe(event, left)

    def era(self, start: int, what: tuple[str, ...]) -> Era:
        """The era that begins with what is so now."""
        agents = tuple(self._agent(i) for i in range(len(self.entries)))
        return Era(start, what, agents, frozenset(self.cut_modalities), frozenset(self.cut_links))

    def _facts(self, event: Event, agents: Sequence[int]) -> tuple[set[Any], set[Any]]:
        """The facts of the event's sort, and those that it is about."""
        if isinstance(event, SensorEvent):
            return self.held, {(i, event.modality) for i in agents}
        if isinstance(event, PresenceEvent):
            return self.here, set(agents)
        if event.modality is not None:
            return self.cut_modalities, {event.modality}
        return self.cut_links, {(min(link), max(link)) for link in event.links or ()}

    def _agent(self, i: int) -> Agent:
        held = self._modalities_of(i) if i in self.here - self.isolated else ()
        return Agent(i, held, tuple(encoder_of(self.job, self.entries[i], m) for m in held))

    def _modalities_of(self, i: int) -> tuple[str, ...]:
        return tuple(m for m in self.modalities if (i, m) in self.held)


def describe(event: Event, agents: Sequence[int]) -> str:
    """An event in a few words, for logs and metrics."""
    if isinstance(event, LinkEvent):
        links = ", ".join(f"{a}-{b}" for a, b in event.links or ())
        return f"{event.kind} " + (f"the graphs of {event.modality}" if event.modality else f"links {links}")
    what = f" {event.modality}" if isinstance(event, SensorEvent) else ""
    return f"{event.kind}{what}: {_listed(agents)}"


def _listed(agents: Sequence[int]) -> str:
    ids = ", ".join(map(str, agents[:8])) + (f", … ({len(agents)} in all)" if len(agents) > 8 else "")
    return f"{'agent' if len(agents) == 1 else 'agents'} {ids}"


def _concerned(
    job: Job, agents: Sequence[Agent], modalities: Sequence[str]
) -> tuple[dict[int, tuple[int, ...]], dict[int, str]]:
    """The agents that each event chooses, by its index, and what of the names in it does not exist."""
    chosen: dict[int, tuple[int, ...]] = {}
    problems = {}
    for index, event in enumerate(job.events):
        try:
            chosen[index] = () if isinstance(event, LinkEvent) else choose(event.agents, agents, job.seed, "event", 0)
            if not isinstance(event, PresenceEvent):
                _check_modality(event.modality, modalities)
            if isinstance(event, LinkEvent):
                _check_links(event.links or (), job.topology, len(agents))
        except ValueError as error:
            problems[index] = str(error)
    return chosen, problems


def _check_modality(name: str | None, modalities: Sequence[str]) -> None:
    if name is not None and name not in modalities:
        raise ValueError(f"no data for modality {name!r}; there is {', '.join(modalities)}")


def _check_links(links: Sequence[Link], topology: Topology, agent_count: int) -> None:
    for link in links:
        if max(link) >= agent_count:
            raise ValueError(f"there is no agent {max(link)}; ids go from 0 to {agent_count - 1}")
    if links and topology.needs_all_links:
        raise ValueError(
            f"topology.kind: {topology.kind} has fixed weights: without one of its links agents would give away more "
            "than they get; choose another kind, or cut a modality's graphs"
        )


def _late(events: Iterable[tuple[Event, Sequence[int]]]) -> set[int]:
    """Agents whose first event of presence, in the order given, is to join: they are away at the start."""
    first: dict[int, str] = {}
    for event, agents in events:
        if isinstance(event, PresenceEvent):
            for i in agents:
                first.setdefault(i, event.kind)
    return {i for i, kind in first.items() if kind == "join"}


def _subject(event: Event, fact: Any) -> str:
    """What an event is about, in words."""
    if isinstance(event, LinkEvent):
        return f"the graph of {fact}" if isinstance(fact, str) else f"the link {fact[0]}-{fact[1]}"
    if isinstance(event, SensorEvent):
        return f"agent {fact[0]} can't {event.kind} {fact[1]}: it"
    return f"agent {fact} can't {event.kind}: it"
