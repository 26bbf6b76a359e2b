"""Mixing rows: x_i <- x_i + sum_j W_ij (x_j - x_i), in the residual form of method.md 1.5.

Consensus is an exact fixed point, the mean does not drift, and as each operation rounds on its own and neighbours
come in ascending id, an agent's new row has the same bits on every placement.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from parse_mpi.exchange.routing import Route, Sums

# Bytes of rows handled at a time: on a CPU a block stays in the second-level cache, on a GPU it bounds scratch memory.
BLOCK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 28}
LEAST_COLUMNS = 128  # keeps the cost of a call small against its work where a rank hosts thousands of agents


@dataclass(frozen=True)
class DeviceSums:
    """Sums with the indices on the device; each turn is a pair of source [n] and weight [n, 1] in the rows' dtype."""

    targets: Tensor
    turns: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class DeviceRoute:
    """Indices of a Route on the device of the rows: what to send, and what to sum."""

    send_rows: Tensor
    interior: DeviceSums
    boundary: DeviceSums
    isolated: Tensor

    @staticmethod
    def of(route: Route, dtype: torch.dtype, device: torch.device) -> DeviceRoute:
        """Copy the index arrays of a route to the device."""

        def put(sums: Sums) -> DeviceSums:
            turns = tuple(
                (torch.from_numpy(turn.source).to(device), torch.from_numpy(turn.weight).to(device, dtype).unsqueeze(1))
                for turn in sums.turns
            )
            return DeviceSums(torch.from_numpy(sums.targets).to(device), turns)

        send_rows, isolated = (torch.from_numpy(index).to(device) for index in (route.send_rows, route.isolated))
        return DeviceRoute(send_rows, put(route.interior), put(route.boundary), isolated)


def add_differences(values: Tensor, change: Tensor, sums: DeviceSums, accumulate: bool = False) -> None:
    """Write sum_j W_ij (x_j - x_i) of the target rows into `change` [A, P], or add it; values is [A + G, P].

    Other rows of `change` are left as they are.
    """
    rows, width = len(sums.targets), values.shape[1]
    if not rows:
        return
    block = max(LEAST_COLUMNS, BLOCK_BYTES[values.device.type] // (rows * values.element_size()))
    for start in range(0, width, block):
        columns = values[:, start : start + block]
        own = columns[sums.targets]
        total, difference = torch.zeros_like(own), torch.empty_like(own)
        for source, weight in sums.turns:
            head = slice(len(source))
            torch.index_select(columns, 0, source, out=difference[head])
            total[head].add_(difference[head].sub_(own[head]).mul_(weight))
        part = change[:, start : start + block]
        if accumulate:
            part.index_add_(0, sums.targets, total)
        else:
            part[sums.targets] = total
