"""Neighbourhood exchange: one collective per graph and round brings the rows of remote neighbours.

Three buffers per graph, named: the rows (agents/rows.py, never touched by MPI), `send` and `receive` [rows, width],
where a row holds all slices of one agent on this graph side by side, so that slices of one scope travel together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from parse_mpi.agents.rows import SliceRows
from parse_mpi.exchange.mixing import DeviceRoute, add_differences
from parse_mpi.exchange.routing import Route, chosen_transport, make_route, rank_neighbours
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.topology.slice_graph import SliceGraph


class GraphExchange:
    """The exchange of all slices that mix over one graph, on this rank.

    A round is `start`, `mix_interior`, `wait`, `mix_boundary`; work of other graphs may come in between.
    """

    def __init__(self, world: World, plan: Plan, graph: SliceGraph, slices: Mapping[str, SliceRows], tag: int):
        names = [spec.name for spec in plan.slices if spec.graph == graph.name]
        self.graph = graph
        self.world = world
        self.rank_of = plan.rank_of
        self.slices = [slices[name] for name in names if name in slices]  # all of them, or none on an empty rank
        self.widths = {name: plan.layouts[name].width for name in names}
        self.width = sum(self.widths.values())
        self.columns = _columns(list(self.widths.values())) if self.slices else []
        self.dtype: torch.dtype = getattr(torch, plan.job.dtype)
        self.device = self.slices[0].source.device if self.slices else torch.device("cpu")
        self.tag = tag
        self.via = chosen_transport(graph, plan.job.exchange.via)
        self.row_type = MPI.BYTE.Create_contiguous(self.width * self.dtype.itemsize).Commit()
        self.comm: MPI.Distgraphcomm | None = None
        if self.via == "neighbour" and world.size > 1:
            self.neighbours = rank_neighbours(graph, plan.rank_of, world.rank)
            ranks = self.neighbours.tolist()
            self.comm = world.comm.Create_dist_graph_adjacent(ranks, ranks, reorder=False)
        self._cached: tuple[Route, DeviceRoute] | None = None
        self._requests: list[MPI.Request] = []
        self._send = self._receive = self._host_buffer(0)

    def start(self, round_index: int) -> None:
        """Pack the rows that remote neighbours need and post the exchange."""
        self.route, self.indices = self._routes(round_index)
        self._send = self._pack(self.indices.send_rows)
        if len(self._receive) != len(self.route.ghosts):
            self._receive = self._host_buffer(len(self.route.ghosts))
        send, receive = self._send.numpy(), self._receive.numpy()
        self._requests = (
            self._post_collective(self.comm, send, receive) if self.comm else self._post_pairs(send, receive)
        )

    def mix_interior(self) -> None:
        """Sum the neighbours of agents whose neighbours are all local, while the other rows travel."""
        for rows in self.slices:
            rows.change[self.indices.isolated] = 0
            add_differences(rows.source, rows.change, self.indices.interior)

    def wait(self) -> None:
        """Until the remote rows are here."""
        MPI.Request.Waitall(self._requests)
        self._requests = []

    def mix_boundary(self) -> None:
        """Sum the neighbours of all other agents, then give every row its change."""
        received = self._receive.to(self.device, non_blocking=True)  # done before MPI writes it again: see _pack
        for rows, (start, stop) in zip(self.slices, self.columns, strict=True):
            count = len(rows.agents)
            rows.source[count : count + len(received)] = received[:, start:stop]
            add_differences(rows.source, rows.change, self.indices.boundary)
            rows.mixed.add_(rows.change)

    def sent_bytes(self) -> dict[str, dict[int, int]]:
        """Bytes sent this round: slice -> destination rank -> bytes."""
        counts = dict(zip(self.route.send_to.tolist(), self.route.send_counts.tolist(), strict=True))
        return {
            name: {peer: count * width * self.dtype.itemsize for peer, count in counts.items()}
            for name, width in self.widths.items()
        }

    def free(self) -> None:
        """Give back the communicator and the data type."""
        if self.comm:
            self.comm.Free()
        self.row_type.Free()

    # -- packing and posting -----------------------------------------------------------------------------------------

    def _routes(self, round_index: int) -> tuple[Route, DeviceRoute]:
        if self._cached is None or not self.graph.static:
            local = self.slices[0].agents.tolist() if self.slices else []
            route = make_route(self.graph.at(round_index), self.rank_of, self.world.rank, local)
            self._cached = route, DeviceRoute.of(route, self.dtype, self.device)
        return self._cached

    def _pack(self, index: Tensor) -> Tensor:
        """Host buffer with the rows to send, all slices of an agent side by side."""
        if len(self._send) != len(index):
            self._send = self._host_buffer(len(index))
        # Rows of a GPU come side by side on the GPU: only a contiguous copy goes straight into pinned memory.
        packed = self._send if self.device.type == "cpu" else torch.empty_like(self._send, device=self.device)
        for rows, (start, stop) in zip(self.slices, self.columns, strict=True):
            packed[:, start:stop] = rows.source[index]
        if self.device.type == "cuda":
            self._send.copy_(packed, non_blocking=True)
            # MPI reads and writes host memory: all copies from and to it must be complete.
            torch.cuda.current_stream(self.device).synchronize()
        return self._send

    def _host_buffer(self, rows: int) -> Tensor:
        return torch.empty(rows, self.width, dtype=self.dtype, pin_memory=self.device.type == "cuda" and rows > 0)

    def _post_collective(self, comm: MPI.Distgraphcomm, send: np.ndarray, receive: np.ndarray) -> list[MPI.Request]:
        outgoing = _aligned(self.neighbours, self.route.send_to, self.route.send_counts)
        incoming = _aligned(self.neighbours, self.route.receive_from, self.route.receive_counts)
        return [
            comm.Ineighbor_alltoallv(
                [send, (outgoing, _starts(outgoing)), self.row_type],
                [receive, (incoming, _starts(incoming)), self.row_type],
            )
        ]

    def _post_pairs(self, send: np.ndarray, receive: np.ndarray) -> list[MPI.Request]:
        requests = []
        for buffer, peers, counts, call in (
            (receive, self.route.receive_from, self.route.receive_counts, self.world.comm.Irecv),
            (send, self.route.send_to, self.route.send_counts, self.world.comm.Isend),
        ):
            for peer, start, count in zip(peers.tolist(), _starts(counts.tolist()), counts.tolist(), strict=True):
                requests.append(call([buffer[start : start + count], count, self.row_type], peer, self.tag))
        return requests


def _columns(widths: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(widths).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _aligned(neighbours: np.ndarray, peers: np.ndarray, counts: np.ndarray) -> list[int]:
    """Counts in the order of the communicator's neighbours, 0 where nothing travels this round."""
    full = np.zeros(len(neighbours), np.int64)
    full[np.searchsorted(neighbours, peers)] = counts
    return full.tolist()


def _starts(counts: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(counts[:-1], dtype=np.int64).tolist()] if len(counts) else []
