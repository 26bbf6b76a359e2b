"""One lane in flight on one rank: what it packs, where the remote rows land, and which sums they enter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.lanes import Lane
from parse_mpi.exchange.mixing import DeviceRoute
from parse_mpi.exchange.routing import Index, Route


class Flight:
    """A lane's buffers `send` and `receive` [rows, width] and its indices; reused as long as the lane is the same.

    A row of a buffer holds all columns of one agent that the lane carries side by side, so that slices of one scope
    travel together. MPI reads and writes these buffers only.
    """

    def __init__(
        self,
        lane: Lane,
        route: Route,
        indices: DeviceRoute,
        slices: Mapping[str, SliceRows],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.lane = lane
        self.route = route
        self.indices = indices
        self.device = device
        self.dtype = dtype
        self.windows = [(slices[name], slice(start, stop)) for name, start, stop in lane.windows if name in slices]
        self.carried = {rows.name for rows, _ in self.windows}
        self.row_bytes = lane.width * dtype.itemsize
        self._send = self._host_buffer(len(route.send_rows))
        self._receive = self._host_buffer(len(route.ghosts))

    def pack(self) -> tuple[np.ndarray, np.ndarray]:
        """Fill the send buffer; returns it and the receive buffer, ready for MPI."""
        # Rows of a GPU come side by side on the GPU: only a contiguous copy goes straight into pinned memory.
        packed = self._send if self.device.type == "cpu" else torch.empty_like(self._send, device=self.device)
        for (rows, window), columns in self._side_by_side():
            packed[:, columns] = rows.source[self.indices.send_rows, window]
        if self.device.type == "cuda":
            self._send.copy_(packed, non_blocking=True)
            # MPI reads and writes host memory: all copies from and to it must be complete.
            torch.cuda.current_stream(self.device).synchronize()
        return self._send.numpy(), self._receive.numpy()

    def unpack(self) -> None:
        """Lay the received rows behind the local ones."""
        received = self._receive.to(self.device, non_blocking=True)  # done before MPI writes it again: see pack
        for (rows, window), columns in self._side_by_side():
            count = len(rows.agents)
            rows.source[count : count + len(received), window] = received[:, columns]

    def sent_bytes(self) -> dict[str, Counter[int]]:
        """Bytes sent this round: slice -> destination rank -> bytes."""
        counts = dict(zip(self.route.send_to.tolist(), self.route.send_counts.tolist(), strict=True))
        sent: dict[str, Counter[int]] = {}
        for name, start, stop in self.lane.windows:
            size_bytes = (stop - start) * self.dtype.itemsize
            sent.setdefault(name, Counter()).update({peer: count * size_bytes for peer, count in counts.items()})
        return sent

    def _side_by_side(self) -> list[tuple[tuple[SliceRows, slice], slice]]:
        """Each slice's rows and window with the columns of a buffer row that hold it."""
        pairs, start = [], 0
        for rows, window in self.windows:
            stop = start + window.stop - window.start
            pairs.append(((rows, window), slice(start, stop)))
            start = stop
        return pairs

    def _host_buffer(self, rows: int) -> Tensor:
        pinned = self.device.type == "cuda" and rows > 0
        return torch.empty(rows, self.lane.width, dtype=self.dtype, pin_memory=pinned)


class Counts(Protocol):
    """How many rows go to which ranks, and come from which; ranks ascend."""

    @property
    def send_to(self) -> Index: ...

    @property
    def send_counts(self) -> Index: ...

    @property
    def receive_from(self) -> Index: ...

    @property
    def receive_counts(self) -> Index: ...


class Parcel(Protocol):
    """What can cross ranks: rows of one size."""

    row_bytes: int

    @property
    def route(self) -> Counts: ...

    def pack(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows to send, rank after rank, and the place of those to receive."""


class Transport:
    """How lanes cross ranks on one graph: a neighbourhood collective per phase of the graph, or pairs of messages."""

    def __init__(self, comm: MPI.Intracomm, phases: Sequence[tuple[np.ndarray, np.ndarray]], via: str, tag: int):
        """phases: (ranks to receive from, ranks to send to) of each phase of the graph.

        tag: of this graph's messages. All ranks post the lanes of a graph in one order, and MPI keeps it.
        """
        self.world = comm
        self.via = via
        self.tag = tag
        self.phases = phases
        self.comms: list[MPI.Distgraphcomm] = []
        if via == "neighbour" and comm.size > 1:
            self.comms = [
                comm.Create_dist_graph_adjacent(sources.tolist(), destinations.tolist(), reorder=False)
                for sources, destinations in phases
            ]
        self._row_types: dict[int, MPI.Datatype] = {}

    def post(self, parcel: Parcel, round_index: int) -> list[MPI.Request]:
        """Pack the rows of a parcel and post their exchange."""
        send, receive = parcel.pack()
        row = self._row_type(parcel.row_bytes)
        if self.comms:
            return [self._post_collective(round_index % len(self.comms), parcel.route, send, receive, row)]
        return self._post_pairs(parcel.route, send, receive, row)

    def free(self) -> None:
        """Give back communicators and data types."""
        for comm in self.comms:
            comm.Free()
        for row in self._row_types.values():
            row.Free()

    def _post_collective(
        self, phase: int, route: Counts, send: np.ndarray, receive: np.ndarray, row: MPI.Datatype
    ) -> MPI.Request:
        sources, destinations = self.phases[phase]
        incoming = _aligned(sources, route.receive_from, route.receive_counts)
        outgoing = _aligned(destinations, route.send_to, route.send_counts)
        return self.comms[phase].Ineighbor_alltoallv(
            [send, (outgoing, _starts(outgoing)), row], [receive, (incoming, _starts(incoming)), row]
        )

    def _post_pairs(self, route: Counts, send: np.ndarray, receive: np.ndarray, row: MPI.Datatype) -> list[MPI.Request]:
        requests = []
        for buffer, peers, counts, call in (
            (receive, route.receive_from, route.receive_counts, self.world.Irecv),
            (send, route.send_to, route.send_counts, self.world.Isend),
        ):
            for peer, start, count in zip(peers.tolist(), _starts(counts.tolist()), counts.tolist(), strict=True):
                requests.append(call([buffer[start : start + count], count, row], peer, self.tag))
        return requests

    def _row_type(self, row_bytes: int) -> MPI.Datatype:
        """A row as one item, so that counts in rows can't overflow an int."""
        if row_bytes not in self._row_types:
            self._row_types[row_bytes] = MPI.BYTE.Create_contiguous(row_bytes).Commit()
        return self._row_types[row_bytes]


def _aligned(neighbours: np.ndarray, peers: np.ndarray, counts: np.ndarray) -> list[int]:
    """Counts in the order of the communicator's neighbours, 0 where nothing travels this round."""
    full = np.zeros(len(neighbours), np.int64)
    full[np.searchsorted(neighbours, peers)] = counts
    return full.tolist()


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts[:-1], dtype=np.int64).tolist()] if len(counts) else []
