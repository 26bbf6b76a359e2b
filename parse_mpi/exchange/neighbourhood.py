"""Neighbourhood exchange: every agent moves each of its slices towards its neighbours on that slice's graph.

`start`, `mix_interior`, `wait` and `mix_boundary` make a round; what agents learn may come between the first two where
the rows that travel are apart from the live ones (order: consensus), and work of other graphs anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from mpi4py import MPI

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.flight import Flight, Transport
from parse_mpi.exchange.lanes import Lane
from parse_mpi.exchange.mixing import DeviceRoute, add_differences
from parse_mpi.exchange.routing import chosen_transport, make_route, phase_links, rank_neighbours
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.topology.slice_graph import SliceGraph


class Schedule(Protocol):
    """Says which columns cross which edges of a graph in a round, and how many numbers of each slice stay behind.

    turn: the round of the graph, whose matrix the lanes of a round have.
    """

    def turn(self, round_index: int) -> int: ...

    def lanes(self, round_index: int) -> list[Lane]: ...

    def waiting(self, round_index: int) -> dict[str, int]: ...


class Exchange(Protocol):
    """What a round asks of the exchange of one graph, in this order; the counts are those of the last round."""

    @property
    def requests(self) -> Sequence[MPI.Request]: ...

    def start(self, round_index: int) -> None: ...

    def mix_interior(self) -> None: ...

    def wait(self) -> None: ...

    def mix_boundary(self) -> None: ...

    def sent_bytes(self) -> dict[str, Counter[int]]: ...

    def payload_bytes(self) -> dict[str, int]: ...

    def waiting_bytes(self, round_index: int) -> dict[str, int]: ...

    def free(self) -> None: ...


class GraphExchange:
    """The exchange of all slices that mix over one graph, on this rank."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        graph: SliceGraph,
        slices: Mapping[str, SliceRows],
        index: int,
        schedule: Schedule,
    ):
        """index: of the graph among all, the same on every rank. schedule: what travels when."""
        names = [spec.name for spec in plan.slices if spec.graph == graph.name]
        self.graph = graph
        self.rank, self.rank_of = world.rank, plan.rank_of
        self.slices = {name: slices[name] for name in names if name in slices}  # all of them, or none on an empty rank
        self.agents = next(iter(self.slices.values())).agents.tolist() if self.slices else []
        self.dtype: torch.dtype = getattr(torch, plan.job.dtype)
        self.device = next(iter(self.slices.values())).source.device if self.slices else torch.device("cpu")
        self.schedule = schedule
        neighbours = [rank_neighbours(links, plan.rank_of, world.rank) for links in phase_links(graph)]
        via = chosen_transport(graph, plan.job.exchange.via)
        self.transport = Transport(world.comm, neighbours, via, index)
        self.requests: list[MPI.Request] = []
        self.flights: list[Flight] = []
        self._crowded: set[str] = set()  # slices that several flights of the round carry
        self._kept: dict[tuple[int, int], Flight] = {}

    def start(self, round_index: int) -> None:
        """Pack the rows that remote neighbours need and post the exchange."""
        turn, lanes = self.schedule.turn(round_index), self.schedule.lanes(round_index)
        self.flights = [self._flight(turn, k, lane) for k, lane in enumerate(lanes)]
        carried = Counter(name for flight in self.flights for name in flight.carried)
        self._crowded = {name for name, count in carried.items() if count > 1}
        for name in carried:
            self.slices[name].hold()
        self.requests = [request for flight in self.flights for request in self.transport.post(flight, turn)]

    def mix_interior(self) -> None:
        """Sum the neighbours of agents whose neighbours are all local, while the other rows travel."""
        for flight in self.flights:
            for rows, window in flight.windows:
                if rows.name not in self._crowded:
                    rows.change[flight.indices.isolated, window] = 0
                    add_differences(rows.source[:, window], rows.change[:, window], flight.indices.interior)

    def wait(self) -> None:
        """Until the remote rows are here."""
        MPI.Request.Waitall(self.requests)
        self.requests = []

    def mix_boundary(self) -> None:
        """Sum the neighbours of all other agents, then give every row its change."""
        for name in self._crowded:
            self.slices[name].change.zero_()
        for flight in self.flights:
            flight.unpack()
            for rows, window in flight.windows:
                source, change = rows.source[:, window], rows.change[:, window]
                if rows.name in self._crowded:  # lane after lane, so that sums have one order on any placement
                    add_differences(source, change, flight.indices.interior, accumulate=True)
                    add_differences(source, change, flight.indices.boundary, accumulate=True)
                else:
                    add_differences(source, change, flight.indices.boundary)
                    rows.mixed[:, window] += change
        for name in self._crowded:
            self.slices[name].mixed.add_(self.slices[name].change)

    def sent_bytes(self) -> dict[str, Counter[int]]:
        """Bytes sent this round: slice -> destination rank -> bytes."""
        total: dict[str, Counter[int]] = {}
        for flight in self.flights:
            for name, by_peer in flight.sent_bytes().items():
                total.setdefault(name, Counter()).update(by_peer)
        return total

    def payload_bytes(self) -> dict[str, int]:
        """Bytes that all agents send each other this round, by slice, wherever they are."""
        total: Counter[str] = Counter()
        for flight in self.flights:
            link_bytes = len(flight.lane.matrix.neighbours) * self.dtype.itemsize
            for name, start, stop in flight.lane.windows:
                total[name] += link_bytes * (stop - start)
        return total

    def waiting_bytes(self, round_index: int) -> dict[str, int]:
        """Bytes that were due but stay behind for want of budget, over all links, by slice."""
        return {name: count * self.dtype.itemsize for name, count in self.schedule.waiting(round_index).items()}

    def free(self) -> None:
        """Give back communicators and data types."""
        self.transport.free()

    def _flight(self, turn: int, k: int, lane: Lane) -> Flight:
        """The k-th flight of a round; what does not change within a phase of the graph is kept and used again."""
        key = (turn % self.graph.phases if self.graph.phases else 0, k)
        kept = self._kept.get(key)
        if kept is None or kept.lane.matrix is not lane.matrix:
            route = make_route(lane.matrix, self.rank_of, self.rank, self.agents)
            indices = DeviceRoute.of(route, self.dtype, self.device)
            kept = self._kept[key] = Flight(lane, route, indices, self.slices, self.dtype, self.device)
        elif kept.lane.windows != lane.windows:
            kept = Flight(lane, kept.route, kept.indices, self.slices, self.dtype, self.device)
            self._kept[key] = kept
        return kept
