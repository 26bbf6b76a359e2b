"""Sheaf coupling: slices of different sizes are pulled towards each other through restriction maps (method.md, 2).

Agent i keeps a map P_ij [E, P_i] for each neighbour j, which turns its slice into E numbers. These travel, and what
they say to each other is to agree: both ends take a step down the gradient of |P_ij x_i - P_ji x_j|^2 / 2, each with
its own slice and its own map. Neither ever learns the other's slice or map.

Shapes: N neighbours that are active in a round, E numbers on a link, P parameters, R messages to or from other ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.rows import MAPS, SliceRows
from parse_mpi.exchange.flight import Transport
from parse_mpi.exchange.routing import chosen_transport, phase_links, rank_neighbours
from parse_mpi.exchange.world import World
from parse_mpi.methods.base import Coupling
from parse_mpi.plan import Plan
from parse_mpi.seeding import stream
from parse_mpi.topology.mixing import MixingMatrix
from parse_mpi.topology.slice_graph import SliceGraph

Index = NDArray[np.int64]
# Of what would make a step overshoot: with half of it each, both steps together close a gap at most twice, but for the
# product of both, which only matters where heads or maps of neighbours are very unequal.
LARGEST_STEP = 0.5


@dataclass(frozen=True, eq=False)
class Post:
    """Who tells whom in one round, as one rank sees it: `Transport` reads the counts.

    outgoing, incoming: (sender, receiver) of each message to and from another rank, by rank, then receiver and sender.
    """

    send_to: Index
    send_counts: Index
    receive_from: Index
    receive_counts: Index
    outgoing: Index
    incoming: Index

    @staticmethod
    def of(matrix: MixingMatrix, rank_of: Index, rank: int) -> Post:
        """Both ends of a message find it in one place, as every rank sorts the same links."""
        links = matrix.links()
        here, there = rank_of[links[:, 0]], rank_of[links[:, 1]]
        send_to, send_counts, outgoing = _by_rank(links, there, (here == rank) & (there != rank))
        receive_from, receive_counts, incoming = _by_rank(links, here, (here != rank) & (there == rank))
        return Post(send_to, send_counts, receive_from, receive_counts, outgoing, incoming)


class Mail:
    """The messages of one round on one rank, [R, E] each way, in host memory: what `Transport` carries."""

    def __init__(self, post: Post, width: int, dtype: torch.dtype):
        self.route = post
        self.row_bytes = width * dtype.itemsize
        self.send = torch.empty(len(post.outgoing), width, dtype=dtype)
        self.received = torch.empty(len(post.incoming), width, dtype=dtype)
        self.place = {(int(j), int(i)): k for k, (j, i) in enumerate(post.incoming.tolist())}

    def pack(self) -> tuple[np.ndarray, np.ndarray]:
        """Both buffers, ready for MPI."""
        return self.send.numpy(), self.received.numpy()


@dataclass(frozen=True, eq=False)
class Member:
    """A local agent: the row of its slice, and the place of each neighbour's map in the row of its maps."""

    agent: int
    rows: SliceRows
    row: int
    slots: Mapping[int, int]
    coupling: Coupling

    @property
    def maps(self) -> Tensor:
        """[slots, E, P], a view."""
        return self.rows.state[MAPS][self.row].view(-1, self.coupling.width, self.rows.layout.width)

    def maps_to(self, neighbours: Sequence[int]) -> Tensor:
        """Those of some neighbours [N, E, P], a copy, so that its place in memory decides no bit of a product."""
        return self.maps.index_select(0, self._places(neighbours))

    def keep(self, neighbours: Sequence[int], maps: Tensor) -> None:
        """Take new maps to some neighbours, [N, E, P]."""
        self.maps.index_copy_(0, self._places(neighbours), maps)

    def _places(self, neighbours: Sequence[int]) -> Tensor:
        return torch.tensor([self.slots[j] for j in neighbours], device=self.rows.source.device)

    def values(self) -> Tensor:
        """The slice as it is held for this round [P], a copy for the same reason."""
        return self.rows.source[self.row, : self.rows.layout.width].clone()


class SheafExchange:
    """The exchange of all coupled slices on one graph, on this rank; it is used as a GraphExchange is."""

    def __init__(self, world: World, plan: Plan, graph: SliceGraph, slices: Mapping[str, SliceRows], tag: int):
        """tag: of its messages, no other exchange's; the same on every rank."""
        specs = [spec for spec in plan.slices if spec.coupling and spec.coupling.graph == graph.name]
        self.graph = graph
        self.rank, self.rank_of = world.rank, plan.rank_of
        self.slices = {spec.name: slices[spec.name] for spec in specs if spec.name in slices}
        self.slice_of = {agent: spec.name for spec in specs for agent in spec.holders}
        (self.coupling,) = {spec.coupling for spec in specs if spec.coupling}
        self.dtype: torch.dtype = getattr(torch, plan.job.dtype)
        self.members = self._members()
        self._draw_maps(plan.job.seed)
        neighbours = [rank_neighbours(links, plan.rank_of, world.rank) for links in phase_links(graph)]
        self.transport = Transport(world.comm, neighbours, chosen_transport(graph, plan.job.exchange.via), tag)
        self.requests: list[MPI.Request] = []
        self._mail: dict[int, Mail] = {}
        self._now: Mail | None = None
        self._matrix = graph.at(0)
        self._told: dict[tuple[int, int], Tensor] = {}

    def start(self, round_index: int) -> None:
        """Work out what the agents tell their neighbours of this round, and post what goes to other ranks."""
        self._matrix = self.graph.at(round_index)
        for rows in self.slices.values():
            rows.hold()
        self._told = {}
        for member in self.members:
            neighbours = self._neighbours(member.agent)
            if neighbours:
                told = member.maps_to(neighbours).flatten(0, 1) @ member.values()
                parts = told.view(len(neighbours), -1)
                self._told |= {(member.agent, j): part for j, part in zip(neighbours, parts, strict=True)}
        self._now = mail = self._mail_of(round_index)
        if len(mail.send):
            mail.send.copy_(torch.stack([self._told[j, i] for j, i in mail.route.outgoing.tolist()]))
        self.requests = self.transport.post(mail, round_index)

    def mix_interior(self) -> None:
        """Pull the agents whose neighbours are all local, while the other messages travel."""
        for member in self.members:
            if not self._hears_from_afar(member.agent):
                self._pull(member)

    def wait(self) -> None:
        """Until the messages of other ranks are here."""
        MPI.Request.Waitall(self.requests)
        self.requests = []

    def mix_boundary(self) -> None:
        """Pull all other agents."""
        for member in self.members:
            if self._hears_from_afar(member.agent):
                self._pull(member)

    def sent_bytes(self) -> dict[str, Counter[int]]:
        """Bytes sent this round: slice of the sender -> destination rank -> bytes."""
        total: dict[str, Counter[int]] = {}
        for sender, receiver in self._now.route.outgoing.tolist() if self._now else ():
            peers = total.setdefault(self.slice_of[sender], Counter())
            peers[int(self.rank_of[receiver])] += self._message_bytes
        return total

    def payload_bytes(self) -> dict[str, int]:
        """Bytes that all agents send each other this round, by slice of the sender, wherever they are."""
        count = Counter(self.slice_of[agent] for agent in self._matrix.neighbours.tolist())
        return {name: links * self._message_bytes for name, links in count.items()}

    def waiting_bytes(self, round_index: int) -> dict[str, int]:
        """Nothing that is due stays behind."""
        return {}

    def free(self) -> None:
        """Give back communicators and data types."""
        self.transport.free()

    def take_over(self, old: SheafExchange) -> None:
        """Go on with the maps of the era before, for links between slices that both eras have."""
        before = {(member.rows.name, member.agent): member for member in old.members}
        for member in self.members:
            if known := before.get((member.rows.name, member.agent)):
                for j in member.slots.keys() & known.slots.keys():
                    member.maps[member.slots[j]] = known.maps[known.slots[j]]

    @property
    def _message_bytes(self) -> int:
        return self.coupling.width * self.dtype.itemsize

    def _members(self) -> list[Member]:
        """The local agents, ascending; maps of neighbours lie in ascending order of their ids."""
        sender, receiver = self.graph.links().T
        found = []
        for rows in self.slices.values():
            for row, agent in enumerate(rows.agents.tolist()):
                slots = {j: k for k, j in enumerate(sender[receiver == agent].tolist())}
                found.append(Member(agent, rows, row, slots, self.coupling))
        return sorted(found, key=lambda member: member.agent)

    def _draw_maps(self, seed: int) -> None:
        """Initial values: independent normal numbers of variance 1 / P, whose rows are nearly orthonormal."""
        for member in self.members:
            shape = self.coupling.width, member.rows.layout.width
            for j, slot in member.slots.items():
                drawn = stream(seed, f"restriction map:{member.rows.name}", member.agent, j).standard_normal(shape)
                member.maps[slot] = torch.from_numpy(drawn / shape[1] ** 0.5)

    def _neighbours(self, agent: int) -> list[int]:
        """Those of this round, ascending."""
        row = int(np.searchsorted(self._matrix.agents, agent))
        start, stop = self._matrix.starts[row : row + 2]
        return [int(j) for j in self._matrix.neighbours[start:stop]]

    def _hears_from_afar(self, agent: int) -> bool:
        return any(self.rank_of[j] != self.rank for j in self._neighbours(agent))

    def _pull(self, member: Member) -> None:
        """Step down the gradient of the gaps to this round's neighbours, with the slice and with the maps.

        Neither step is longer than what can't overshoot while the other stands still (docs/method.md, section 2).
        """
        neighbours = self._neighbours(member.agent)
        if not neighbours:
            return
        maps, values = member.maps_to(neighbours), member.values()
        own = torch.stack([self._told[member.agent, j] for j in neighbours])
        gap = own - torch.stack([self._heard(j, member.agent) for j in neighbours])
        rate = (LARGEST_STEP / reach(maps)).clamp(max=self.coupling.rate)
        map_rate = (LARGEST_STEP / (values @ values)).clamp(max=self.coupling.map_rate)
        member.rows.local[member.row] -= maps.flatten(0, 1).T @ (gap * rate).flatten()  # a product of both may overflow
        maps.flatten(0, 1).addr_((gap * map_rate).flatten(), values, alpha=-1)  # maps are large: one pass over memory
        member.keep(neighbours, maps)

    def _heard(self, sender: int, receiver: int) -> Tensor:
        """What an agent was told by a neighbour [E]."""
        if self.rank_of[sender] == self.rank:
            return self._told[sender, receiver]
        assert self._now is not None
        return self._now.received[self._now.place[sender, receiver]].to(self._told[receiver, sender].device)

    def _mail_of(self, round_index: int) -> Mail:
        """Buffers and order of the messages; kept where the graph repeats itself."""
        phase = round_index % self.graph.phases if self.graph.phases else -1
        if phase < 0 or phase not in self._mail:
            post = Post.of(self._matrix, self.rank_of, self.rank)
            self._mail[phase] = Mail(post, self.coupling.width, self.dtype)
        return self._mail[phase]


def reach(maps_NEP: Tensor) -> Tensor:
    """A bound [] on the sum over neighbours of |P_ij|^2, the squares of spectral norms.

    The largest eigenvalue of P P^T is at most its largest absolute row sum.
    """
    return (maps_NEP @ maps_NEP.mT).abs().sum(2).amax(1).sum()


def _by_rank(links: Index, peer: Index, chosen: NDArray[np.bool_]) -> tuple[Index, Index, Index]:
    """Ranks ascending, how many of the chosen links each has, and those links: by rank, then as they stand."""
    peers, counts = np.unique(peer[chosen], return_counts=True)
    return peers, counts.astype(np.int64), links[chosen][np.argsort(peer[chosen], kind="stable")]
