"""Slice rows: all agents of a rank that hold a slice, as one matrix with a row per agent.

Shapes: A agents of this rank that hold the slice, G ghost rows (copies of remote neighbours), P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.methods.layout import SliceLayout


class SliceRows:
    """One slice on one rank.

    values [A + G, P]: the rows that networks view, with the ghost rows of the current round behind them.
    gradients [A, P]: what backward accumulates into; free as scratch between the optimiser step and the next one.
    state: optimiser state by name, [A, P] each.
    MPI never touches any of these: a write that autograd does not see between forward and backward would give
    silently wrong gradients.
    """

    def __init__(
        self,
        name: str,
        layout: SliceLayout,
        agents: Sequence[int],
        ghosts: int,
        state: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.name = name
        self.layout = layout
        self.agents: NDArray[np.int64] = np.asarray(agents, np.int64)
        count = len(self.agents)
        self.values = torch.zeros(count + ghosts, layout.width, dtype=dtype, device=device)
        self.local = self.values[:count]
        self.gradients = torch.zeros_like(self.local)
        self.state = {key: torch.zeros_like(self.local) for key in state}

    def parameters(self, rows: slice | int) -> dict[str, Tensor]:
        """Autograd leaves that view the rows: name -> [*shape] for one row, [n, *shape] for a range of rows.

        Each leaf's gradient is preassigned to a view of `gradients`, so that backward fills the matrix in place.
        """
        leaves = {}
        for span in self.layout.spans:
            lead = () if isinstance(rows, int) else (rows.stop - rows.start,)
            leaf = self.local[rows, span.start : span.stop].view(*lead, *span.shape).detach().requires_grad_()
            leaf.grad = self.gradients[rows, span.start : span.stop].view(*lead, *span.shape)
            leaves[span.name] = leaf
        return leaves

    def fill(self, row: int, parameters: Mapping[str, Tensor]) -> None:
        """Write the parameters of a plain module into one row."""
        for span in self.layout.spans:
            self.local[row, span.start : span.stop] = parameters[span.name].detach().reshape(-1)

    def matrices(self) -> dict[str, Tensor]:
        """Everything that belongs to the agents and outlives a round, by name: parameters and optimiser state."""
        return {"parameters": self.local, **self.state}
