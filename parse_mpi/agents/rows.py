"""Slice rows: all agents of a rank that hold a slice, as one matrix with a row per agent.

Shapes: A agents of this rank that hold the slice, G ghost rows (copies of remote neighbours), P parameters, T columns
that travel: P, or a multiple where neighbours average other matrices beside the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.methods.layout import SliceLayout

MAPS = "maps"  # state of restriction maps, a block of columns by neighbour: its exchange takes it over into an era


class SliceRows:
    """One slice on one rank.

    mixed [A, T]: the live rows, which neighbours average. Their first P columns are `local`, which networks view; the
    others are `tracker`, what an optimiser has averaged beside them [A, T - P]: an estimate that outlives the round
    (`lasting`), or updates, which do not.
    source [A + G, T]: what a round's sums read, with the ghost rows of the round behind. It is the memory of `mixed`
    itself, or (`apart`) a copy that `hold` takes at the start of the round, so that rows can travel while agents learn.
    change [A, T]: scratch for the sums. Its first P columns are `gradients`, which backward accumulates into.
    state: what the optimiser remembers by name, [A, columns] each.
    MPI never touches any of these: a write that autograd does not see between forward and backward would give
    silently wrong gradients.
    """

    def __init__(
        self,
        name: str,
        layout: SliceLayout,
        agents: Sequence[int],
        ghosts: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        copies: int = 1,
        lasting: bool = True,
        apart: bool = False,
        state: Mapping[str, int] | None = None,
    ):
        self.name = name
        self.layout = layout
        self.agents: NDArray[np.int64] = np.asarray(agents, np.int64)
        count, travelling = len(self.agents), copies * layout.width
        self.lasting = lasting
        self.apart = apart
        self.source = torch.zeros(count + ghosts, travelling, dtype=dtype, device=device)
        self.mixed = torch.zeros_like(self.source[:count]) if apart else self.source[:count]
        self.change = torch.zeros_like(self.mixed)
        self.local, self.tracker = self.mixed[:, : layout.width], self.mixed[:, layout.width :]
        self.gradients = self.change[:, : layout.width]
        self.state = {
            key: torch.zeros(count, columns, dtype=dtype, device=device) for key, columns in (state or {}).items()
        }

    def hold(self) -> None:
        """Take the copy that travels and is summed this round; nothing to do where the rows themselves do."""
        if self.apart:
            self.source[: len(self.agents)] = self.mixed

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
        tracker = {"tracker": self.tracker} if self.lasting and self.tracker.shape[1] else {}
        return {"parameters": self.local, **tracker, **self.state}
