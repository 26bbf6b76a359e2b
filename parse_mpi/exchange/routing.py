"""Routes: which rows one rank sends, receives and sums in one round on one graph. Pure NumPy, no MPI.

Every rank works out its own route from the same mixing matrix, so that nothing is negotiated: sender and receiver
order rows alike, by agent id. A remote row is received once, however many local agents sum it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parse_mpi.topology.mixing import MixingMatrix
from parse_mpi.topology.slice_graph import SliceGraph

Index = NDArray[np.int64]
SPARSE_UNION = 4  # a graph drawn anew each round whose union degree exceeds so many active ones goes by Isend/Irecv


@dataclass(frozen=True, eq=False)
class Turn:
    """One neighbour for each of the first len(source) targets: its row and its weight."""

    source: Index
    weight: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sums:
    """What some local rows sum, turn by turn.

    The k-th turn holds the k-th neighbour, in ascending id, of every target that has one, so that an agent's sum has
    the same order on any placement. Targets with more neighbours come first: a turn then covers the head of them.
    """

    targets: Index
    turns: tuple[Turn, ...]


@dataclass(frozen=True, eq=False)
class Route:
    """One rank's part of one round.

    send_rows: local rows in the order they are sent, `send_counts[d]` of them to rank `send_to[d]`; received rows
    likewise, as ghost rows 0, 1, … behind the local ones (`ghosts`: their agents).
    interior: sums of agents whose neighbours are all local; boundary: of the others.
    isolated: local rows without a neighbour this round; they stay as they are.
    """

    send_to: Index
    send_counts: Index
    send_rows: Index
    receive_from: Index
    receive_counts: Index
    ghosts: Index
    interior: Sums
    boundary: Sums
    isolated: Index


def make_route(matrix: MixingMatrix, rank_of: Index, rank: int, local: Sequence[int]) -> Route:
    """Route of `rank`, which hosts the agents `local` of the graph in this row order.

    rank_of: rank of every agent of the job by id.
    """
    sender, receiver = matrix.links().T
    here, there = rank_of[receiver] == rank, rank_of[sender] == rank
    receive_from, receive_counts, ghosts = _unique_rows(rank_of, sender[here & ~there], rank_of[sender[here & ~there]])
    send_to, send_counts, sent = _unique_rows(rank_of, sender[~here & there], rank_of[receiver[~here & there]])

    row_of = np.full(len(rank_of), -1, np.int64)
    row_of[np.asarray(local, np.int64)] = np.arange(len(local))
    send_rows = row_of[sent]
    row_of[ghosts] = len(local) + np.arange(len(ghosts))

    target, source = row_of[receiver[here]], row_of[sender[here]]
    turn = (np.arange(len(receiver)) - np.repeat(matrix.starts[:-1], matrix.degrees))[here]
    on_boundary = np.zeros(len(local), bool)
    on_boundary[target[source >= len(local)]] = True
    interior, boundary = (
        _sums(target[chosen], source[chosen], matrix.weights[here][chosen], turn[chosen])
        for chosen in (~on_boundary[target], on_boundary[target])
    )
    isolated = np.setdiff1d(np.arange(len(local)), target)
    return Route(
        send_to, send_counts, send_rows, receive_from, receive_counts, ghosts, interior, boundary, isolated
    )  # fmt: skip


def _unique_rows(rank_of: Index, agent: Index, peer: Index) -> tuple[Index, Index, Index]:
    """Peers ascending, rows per peer, and the agents whose rows travel: by peer, then id, each once per peer."""
    key = np.unique(peer * len(rank_of) + agent)
    peers, counts = np.unique(key // len(rank_of), return_counts=True)
    return peers, counts.astype(np.int64), key % len(rank_of)


def _sums(target: Index, source: Index, weight: NDArray[np.float64], turn: Index) -> Sums:
    """Group entries `weight * (row[source] - row[target])` by their turn, targets in one order for all turns."""
    rows, row_of_entry, counts = np.unique(target, return_inverse=True, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    position = np.empty(len(rows), np.int64)
    position[by_count] = np.arange(len(rows))
    entries = np.lexsort((position[row_of_entry], turn))
    cuts = np.cumsum(np.bincount(turn))[:-1]
    pairs = zip(np.split(source[entries], cuts), np.split(weight[entries], cuts), strict=True)
    return Sums(rows[by_count], tuple(Turn(*pair) for pair in pairs if len(target)))


def rank_neighbours(links: Index, rank_of: Index, rank: int) -> tuple[Index, Index]:
    """Ranks, ascending, that `rank` receives rows from and sends rows to over links [E, 2] of (sender, receiver)."""
    sender, receiver = rank_of[links].reshape(-1, 2).T
    remote = sender != receiver
    return np.unique(sender[remote & (receiver == rank)]), np.unique(receiver[remote & (sender == rank)])


def ghost_bound(graph: SliceGraph, rank_of: Index, rank: int) -> int:
    """The most ghost rows that any round can need on this rank.

    A matching brings at most one remote neighbour per local agent; otherwise every remote neighbour may come. Where
    clusters are found in mid-run, everybody in an agent's group may become its neighbour.
    """
    if graph.clusters > 1:
        here = [rank_of[np.asarray(group)] == rank for group in graph.groups]
        return sum(int((~local).sum()) for local in here if local.any())
    if graph.spec.kind == "random-gossip" and graph.weights is None:
        local = int((rank_of[np.asarray(graph.agents)] == rank).sum())
        return min(local, len(graph.agents) - local)
    return max(_remote_senders(links, rank_of, rank) for links in phase_links(graph))


def _remote_senders(links: Index, rank_of: Index, rank: int) -> int:
    sender, receiver = links.T
    return len(np.unique(sender[(rank_of[receiver] == rank) & (rank_of[sender] != rank)]))


def chosen_transport(graph: SliceGraph, via: str) -> str:
    """`neighbour` or `p2p`: what `exchange.via` means for this graph (idle links of a collective are not free)."""
    if via != "auto":
        return via
    if graph.phases:
        return "neighbour"
    union = graph.degrees().mean() if len(graph.agents) else 0.0
    return "p2p" if union > SPARSE_UNION * graph.active_degree() else "neighbour"


def phase_links(graph: SliceGraph) -> list[Index]:
    """Links [E, 2] of (sender, receiver) that each communicator of a graph spans.

    One for each phase of a cycle of matrices, so that no round pays for links it does not use; one for everything
    that may ever be drawn where there is no cycle.
    """
    return [graph.at(phase).links() for phase in range(graph.phases)] or [graph.links()]
