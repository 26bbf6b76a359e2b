"""On 2 ranks: rank 0 sends more than 2^31-1 bytes at once to rank 1, as the exchange sends rows.

    mpiexec -n 2 python tests/ranks/large_parcels.py ROWS ROW_BYTES neighbour|p2p

Only the ends of a row are written: pages that nobody writes take no memory, so that what arrives is all there is.
"""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from parse_mpi.exchange.flight import Transport


@dataclass
class Parcel:
    """Rows from rank 0 to rank 1."""

    row_bytes: int
    route: SimpleNamespace
    sent: np.ndarray
    received: np.ndarray

    def pack(self):
        return self.sent, self.received


def marks(rows):
    """A number for each row, and others for its end."""
    return np.arange(rows, dtype=np.uint32) % 251 + 1, np.arange(rows, dtype=np.uint32) % 241 + 7


def parcel(rank, rows, row_bytes):
    nobody, nothing = np.array([], np.int64), np.zeros((0, row_bytes), np.uint8)
    there, count = np.array([1 - rank]), np.array([rows])
    if rank == 1:
        route = SimpleNamespace(send_to=nobody, send_counts=nobody, receive_from=there, receive_counts=count)
        return Parcel(row_bytes, route, nothing, np.empty((rows, row_bytes), np.uint8))
    sent = np.zeros((rows, row_bytes), np.uint8)
    sent[:, 0], sent[:, -1] = marks(rows)
    route = SimpleNamespace(send_to=there, send_counts=count, receive_from=nobody, receive_counts=nobody)
    return Parcel(row_bytes, route, sent, nothing)


def main():
    rows, row_bytes, via = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rank = MPI.COMM_WORLD.rank
    sources, destinations = ([], [1]) if rank == 0 else ([0], [])
    transport = Transport(MPI.COMM_WORLD, [(np.array(sources, np.int64), np.array(destinations, np.int64))], via, 0)
    sending = parcel(rank, rows, row_bytes)
    MPI.Request.Waitall(transport.post(sending, 0))
    transport.free()
    if rank == 1:
        first, last = marks(rows)
        got = sending.received
        assert np.array_equal(got[:, 0], first)
        assert np.array_equal(got[:, -1], last)
        assert not got[:, 1:-1].any(axis=1).any()
        print("arrived", got.nbytes)


if __name__ == "__main__":
    main()
