"""The graph among the holders of some slices: who mixes with whom, in which round, with which weights.

Holders may be cut into groups (for example agents with the same modality set) that mix inside only. Everything here
is a function of the job's topology and seed and of who the members of a group are: slices with the same holders get
the same links, every rank draws the same schedule, and nothing is negotiated (docs/method.md, section 1.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from parse_mpi import job
from parse_mpi.topology.graphs import Edges, Group, Pairs, ordered, stacked
from parse_mpi.topology.matcha import Activation
from parse_mpi.topology.mixing import MixingMatrix, side_by_side
from parse_mpi.topology.schedules import Cut, ExactMean, Matcha, Schedule, Static, make_schedule

LISTED_MEMBERS = 300
SAMPLED_ROUNDS = 20


@dataclass(frozen=True)
class SliceGraph:
    """One graph among the holders of some slices; `slice_graph` makes one.

    groups: disjoint tuples of ascending agent ids. overlay: each group has a graph of the kind among its members in
    the order of their ids. induced: one graph among agents 0 .. agent_count - 1 is cut down to each group.
    without: undirected links (i, j), i < j, that the drawn graph loses before weights are worked out.
    weights: by agent id; every round then gives each group its exact mean with these weights, whatever the topology.
    clusters: above 1, members of a group mix in up to so many clusters, each with a graph of its own, and who is in
    which shows in mid-run; what this graph says is then of groups that are not divided.
    """

    name: str
    groups: tuple[Group, ...]
    spec: job.Topology
    seed: int
    agent_count: int
    without: Cut = frozenset()
    weights: NDArray[np.int64] | None = None
    clusters: int = 1

    @cached_property
    def agents(self) -> tuple[int, ...]:
        """All holders, ascending."""
        return tuple(sorted(agent for group in self.groups for agent in group))

    @cached_property
    def phases(self) -> int:
        """After how many rounds the matrices repeat: 1 if the graph is static, 0 if each round is drawn at random."""
        return math.lcm(*(schedule.phases for schedule in self._schedules))

    @property
    def static(self) -> bool:
        """Whether every round has the same matrix."""
        return self.phases == 1

    @property
    def directed(self) -> bool:
        """Whether an agent may send to another without receiving from it in the same round."""
        return any(schedule.directed for schedule in self._schedules)

    @property
    def symmetric(self) -> bool:
        """Whether every round has the same matrix, with eigenvalues to ask for: Metropolis weights on static graphs."""
        return all(isinstance(schedule, Static) for schedule in self._schedules)

    def at(self, round_index: int) -> MixingMatrix:
        """The mixing matrix of a round: row i holds the agents from which i receives. Doubly stochastic but for
        weighted means, whose rows are all equal.

        The rounds of one phase of a cycle have the same object; a random one is drawn afresh in each call.
        """
        if not self.phases:
            return self._make(round_index)
        phase = round_index % self.phases
        if phase not in self._cycle:
            self._cycle[phase] = self._make(phase)
        return self._cycle[phase]

    def links(self) -> Pairs:
        """int64[L, 2], rows (sender, receiver) in ascending order: every link that some round may use."""
        links = stacked(schedule.links() for schedule in self._schedules)
        return links[np.lexsort((links[:, 1], links[:, 0]))]

    def usual_rounds(self) -> Iterator[tuple[Pairs, float, bool]]:
        """What rounds are like on average: links int64[L, 2], the share of rounds that uses them, and whether together.

        Each phase of a cycle is a set of links. Of graphs drawn anew each round every link stands for itself, with the
        mean share of its group's; where more than LISTED_MEMBERS may all meet that would be too many, and a few rounds
        stand for all.
        """
        for schedule in self._schedules:
            if schedule.phases:
                for phase in range(schedule.phases):
                    yield schedule.at(phase).links(), 1.0 / schedule.phases, True
            elif _is_too_dense(schedule):
                for round_index in range(SAMPLED_ROUNDS):
                    yield schedule.at(round_index).links(), 1.0 / SAMPLED_ROUNDS, True
            elif len(links := schedule.links()):
                yield links, schedule.active_degree() * len(schedule.members) / len(links), False

    @property
    def usually_sampled(self) -> bool:
        """Whether `usual_rounds` gives but a sample of what may be drawn."""
        return any(not schedule.phases and _is_too_dense(schedule) for schedule in self._schedules)

    def union_edges(self) -> Edges:
        """int64[E, 2], i < j, rows ascending: the same without their directions (for gossip, the base graph's)."""
        return self._union_edges

    def degrees(self) -> NDArray[np.int64]:
        """int64[A], degrees in the union graph, in the order of `agents`."""
        degree_of: dict[int, int] = {}
        for schedule in self._schedules:
            degree_of.update(zip(schedule.members, schedule.union.degrees().tolist(), strict=True))
        return np.array([degree_of[agent] for agent in self.agents], dtype=np.int64)

    def active_degree(self) -> float:
        """From how many others an agent receives in a round, on average over agents and rounds."""
        received = (schedule.active_degree() * len(schedule.members) for schedule in self._schedules)
        return sum(received) / max(len(self.agents), 1)

    def components(self) -> list[Group]:
        """Connected components of the union graph over all groups, largest first, then by lowest id."""
        parts = [part for schedule in self._schedules for part in schedule.union.parts()]
        return sorted(parts, key=lambda part: (-len(part), part))

    def disconnected_groups(self) -> list[tuple[Group, list[Group]]]:
        """The groups that fall apart, each with its components, largest first."""
        parts_of = ((schedule.members, schedule.union.parts()) for schedule in self._schedules)
        return [(group, parts) for group, parts in parts_of if len(parts) > 1]

    def spectral_gap(self) -> float:
        """The smallest gap among the groups of two or more agents; nan if there is none, 0 if one falls apart.

        Static graphs: 1 - rho, rho the second largest absolute eigenvalue of W, per round and distance to the mean.
        Others: 1 - lambda_2(E[W^T W]), per round and *squared* distance. E is over the rounds of a cycle, or over
        draws: exact for MATCHA and for gossip on complete and ring bases. Gossip on other bases takes the mean over
        the run's first 500 rounds, and beyond 100 agents matchings of a tree with the same degrees (either is a few
        per cent off at most).
        """
        return min((self._gap(schedule) for schedule in self._several()), default=float("nan"))

    def exact_after(self) -> int | None:
        """Rounds from the start of a cycle after which every group has its exact mean; None if that never comes."""
        rounds = [schedule.exact_after() for schedule in self._several()]
        known = [count for count in rounds if count is not None]
        return max(known) if known and len(known) == len(rounds) else None

    def smallest_eigenvalue(self) -> float:
        """The smallest eigenvalue of W. Raises ValueError unless the graph is `symmetric`."""
        static = [schedule for schedule in self._schedules if isinstance(schedule, Static)]
        if not self.symmetric:
            raise ValueError(
                f"graph {self.name}: {self.spec.kind} has no fixed symmetric W with eigenvalues to ask for"
            )
        return min((schedule.smallest_eigenvalue() for schedule in static), default=1.0)

    def activations(self) -> list[tuple[Group, Activation]]:
        """Of MATCHA, the connected parts with their matchings, probabilities and alpha; empty for other kinds."""
        matcha = (schedule for schedule in self._schedules if isinstance(schedule, Matcha))
        return [part for schedule in matcha for part in schedule.activations]

    @cached_property
    def _schedules(self) -> list[Schedule]:
        """What each group does, in the order of the groups."""
        if self.weights is not None:
            return [ExactMean(group, self.weights[list(group)]) for group in self.groups]
        return [make_schedule(self.spec, group, self.seed, self.agent_count, self.without) for group in self.groups]

    @cached_property
    def _cycle(self) -> dict[int, MixingMatrix]:
        """Phase -> its matrix, once it was asked for."""
        return {}

    @cached_property
    def _union_edges(self) -> Edges:
        edges = ordered(stacked(schedule.union.edges for schedule in self._schedules))
        edges.flags.writeable = False
        return edges

    def _make(self, round_index: int) -> MixingMatrix:
        return side_by_side([schedule.at(round_index) for schedule in self._schedules])

    def _several(self) -> Iterator[Schedule]:
        """The schedules of groups that have somebody to mix with."""
        return (schedule for schedule in self._schedules if len(schedule.members) > 1)

    def _gap(self, schedule: Schedule) -> float:
        if len(schedule.union.parts()) > 1:
            return 0.0
        gap = schedule.gap()
        return 1.0 - (1.0 - gap) ** 2 if schedule.phases == 1 and not self.static else gap


def _is_too_dense(schedule: Schedule) -> bool:
    """Whether links of a schedule without phases are too many to be listed."""
    return schedule.union.is_complete and len(schedule.members) > LISTED_MEMBERS


def slice_graph(
    name: str,
    groups: Iterable[Iterable[int]],
    spec: job.Topology,
    seed: int,
    agent_count: int,
    without: Iterable[tuple[int, int]] = (),
    weights: NDArray[np.int64] | None = None,
    clusters: int = 1,
) -> SliceGraph:
    """The graph called `name` among the holders in `groups`, in any order.

    Raises ValueError unless the groups are disjoint, not empty, and made of ids 0 .. agent_count - 1, or if links are
    to be cut that the topology can't do without.
    """
    sorted_groups = tuple(tuple(sorted(group)) for group in groups)
    holders = [agent for group in sorted_groups for agent in group]
    if len(set(holders)) != len(holders):
        raise ValueError(f"graph {name}: an agent is in two groups, or twice in one")
    if not all(sorted_groups) or not set(holders) <= set(range(agent_count)):
        raise ValueError(f"graph {name}: a group is empty or has an id outside 0 .. {agent_count - 1}")
    cut = frozenset((min(link), max(link)) for link in without)
    if cut and spec.needs_all_links:
        raise ValueError(f"graph {name}: links of {spec.kind} can't be cut, its weights are fixed")
    return SliceGraph(name, sorted_groups, spec, seed, agent_count, cut, weights, clusters)
