"""Which samples an agent sees in which step: a function of (seed, agent, step), whoever else is in its group.

Every epoch of an agent is a fresh permutation of its own samples, cut into as few batches as the batch size allows, of
as equal size as can be: 33 samples at batch size 32 are batches of 16 and 17, since a last batch of a single sample
would be a step in a random direction. An agent with fewer samples than the batch size sees all of them in every step.
A group is padded to its own largest batch, whatever the batch size: what it costs follows from what agents hold.

Shape suffixes: A agents of the group, B batch, N samples of the agents concerned, one agent after another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.seeding import random_keys


def batches_per_epoch(sizes: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """int64 [A], for agents with `sizes` [A] samples."""
    return -(-sizes // batch_size)


def widest_batch(sizes: NDArray[np.int64], batch_size: int) -> int:
    """The largest batch that any of these agents ever has."""
    return int((-(-sizes // batches_per_epoch(sizes, batch_size))).max(initial=1))


class Sampler:
    """Batches of a group of agents, drawn without a loop over agents.

    sizes: int64 [A], samples of each agent, at least 1. agents: int64 [A], their ids.
    """

    def __init__(self, sizes: NDArray[np.int64], agents: NDArray[np.int64], batch_size: int, seed: int):
        if len(sizes) and sizes.min() < 1:
            raise ValueError(f"agent {agents[sizes.argmin()]} has no samples to draw batches from")
        self._sizes_A = sizes
        self._agents_A = agents
        self._seed = seed
        self._batches_per_epoch_A = batches_per_epoch(sizes, batch_size)
        self._width = widest_batch(sizes, batch_size)
        self._starts_A = np.cumsum(sizes) - sizes
        # A cache alone: the permutation of each agent's current epoch. No result depends on what is in it.
        self._epochs_A = np.full(len(sizes), -1)
        self._permutations_N = np.empty(sizes.sum(), dtype=np.int64)

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Batch `step`, counted from 0 over the whole run, of every agent.

        Returns positions int64 [A, B] in the agent's own samples (0..size-1) and a mask bool [A, B]. B is the same in
        every step: the largest batch that any agent of the group ever has, at most the batch size. A masked entry
        repeats the first sample of its batch.
        """
        epochs_A, turn_A = np.divmod(step, self._batches_per_epoch_A)
        self._permute_where_new(epochs_A)
        first_A, next_A = (t * self._sizes_A // self._batches_per_epoch_A for t in (turn_A, turn_A + 1))
        valid_A = next_A - first_A
        column_B = np.arange(self._width)
        mask_AB = column_B < valid_A[:, None]
        offset_AB = (self._starts_A + first_A)[:, None] + np.where(mask_AB, column_B, 0)
        return self._permutations_N[offset_AB], mask_AB

    def _permute_where_new(self, epochs_A: NDArray[np.int64]) -> None:
        """Draws the permutations of the agents whose epoch changed: their samples sorted by random keys."""
        changed = np.flatnonzero(epochs_A != self._epochs_A)
        if len(changed) == 0:
            return
        sizes = self._sizes_A[changed]
        row_N = np.repeat(changed, sizes)
        sample_N = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        key_N = random_keys(self._seed, "batches", self._agents_A[row_N], epochs_A[row_N], sample_N)
        order_N = np.lexsort((key_N, row_N))
        self._permutations_N[self._starts_A[row_N] + sample_N] = sample_N[order_N]
        self._epochs_A = epochs_A
