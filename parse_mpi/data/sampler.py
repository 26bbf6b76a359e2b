"""Which samples an agent sees in which step: a function of (seed, agent, step), whoever else is in its group.

Every epoch of an agent is a fresh permutation of its own samples, cut into as few batches as the batch size allows, of
as equal size as can be: 33 samples at batch size 32 are batches of 16 and 17, since a last batch of a single sample
would be a step in a random direction. An agent with fewer samples than the batch size sees all of them in every step.
A group is padded to its own largest batch, whatever the batch size: what it costs follows from what agents hold.

Where samples arrive over the rounds there are no epochs: every batch is drawn from what has arrived. Steps that need
labels have batches of their own.

Shape suffixes: A agents of the group, B batch, N samples of the agents concerned, one agent after another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from parse_mpi.data.arrival import arrived
from parse_mpi.job import Job, Stream
from parse_mpi.seeding import random_keys

MOST_STEPS = 1 << 20  # that a round of a LabelledSampler may have


def make_sampler(job: Job, sizes: NDArray[np.int64], agents: NDArray[np.int64]) -> Sampler | StreamSampler:
    """Batches as the job asks for them, of the agents with ids `agents` [A] and `sizes` [A] samples each."""
    if job.data.stream is None:
        return Sampler(sizes, agents, job.train.batch_size, job.seed)
    return StreamSampler(sizes, agents, job.train.batch_size, job.seed, job.data.stream, job.train.local_steps)


def batches_per_epoch(sizes: NDArray[np.int64], batch_size: int) -> NDArray[np.int64]:
    """int64 [A], for agents with `sizes` [A] samples."""
    return -(-sizes // batch_size)


def widest_batch(sizes: NDArray[np.int64], batch_size: int, streamed: bool) -> int:
    """The largest batch that any of these agents ever has."""
    largest_A = np.minimum(sizes, batch_size) if streamed else -(-sizes // batches_per_epoch(sizes, batch_size))
    return int(largest_A.max(initial=1))


class Sampler:
    """Batches in epochs, drawn without a loop over agents.

    sizes: int64 [A], samples of each agent, at least 1. agents: int64 [A], their ids.
    """

    def __init__(self, sizes: NDArray[np.int64], agents: NDArray[np.int64], batch_size: int, seed: int):
        _require_samples(sizes, agents)
        self._sizes_A = sizes
        self._agents_A = agents
        self._seed = seed
        self._batches_per_epoch_A = batches_per_epoch(sizes, batch_size)
        self._width = widest_batch(sizes, batch_size, streamed=False)
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
        return _cut(self._permutations_N, self._starts_A + first_A, next_A - first_A, self._width)

    def _permute_where_new(self, epochs_A: NDArray[np.int64]) -> None:
        """Draws the permutations of the agents whose epoch changed."""
        changed = np.flatnonzero(epochs_A != self._epochs_A)
        if len(changed) == 0:
            return
        sizes = self._sizes_A[changed]
        shuffled_N = _shuffled(self._seed, "batches", self._agents_A[changed], epochs_A[changed], sizes)
        start_N = np.repeat(self._starts_A[changed], sizes)
        self._permutations_N[start_N + _places(sizes)] = shuffled_N
        self._epochs_A = epochs_A


class StreamSampler:
    """Batches of agents whose samples arrive in the order of their positions.

    A batch is a random choice, without repetition, of as many arrived samples as the batch size allows: what arrives
    is seen from the next step on, and no batch depends on earlier ones. local_steps: how many steps a round has.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        agents: NDArray[np.int64],
        batch_size: int,
        seed: int,
        stream: Stream,
        local_steps: int,
    ):
        _require_samples(sizes, agents)
        self._sizes_A = sizes
        self._agents_A = agents
        self._batch_size = batch_size
        self._seed = seed
        self._stream = stream
        self._local_steps = local_steps
        self._width = widest_batch(sizes, batch_size, streamed=True)

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """As Sampler.batch."""
        sizes_A = arrived(self._sizes_A, self._stream, step // self._local_steps)
        steps_A = np.full(len(sizes_A), step)
        shuffled_N = _shuffled(self._seed, "stream", self._agents_A, steps_A, sizes_A)
        starts_A = np.cumsum(sizes_A) - sizes_A
        return _cut(shuffled_N, starts_A, np.minimum(sizes_A, self._batch_size), self._width)


class LabelledSampler:
    """Batches of labelled samples alone, for steps that learn from nothing else: drawn anew in every step.

    labels: int64 [N], below 0 where unknown; every agent knows one at least.
    """

    def __init__(self, job: Job, labels_N: NDArray[np.int64], sizes: NDArray[np.int64], agents: NDArray[np.int64]):
        self.agents = agents
        self._sizes_A = sizes
        self._seed, self._stream = job.seed, job.data.stream
        self._batch_size = job.train.batch_size
        known = labels_N >= 0
        self._row_N = np.repeat(np.arange(len(sizes)), sizes)[known]
        self._positions_N = _places(sizes)[known]
        self._counts_A = np.bincount(self._row_N, minlength=len(sizes))
        self._width = widest_batch(self._counts_A, self._batch_size, streamed=True)

    def batch(self, round_index: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """As Sampler.batch, of a step in a round; an agent none of whose labels has arrived gets one sample without."""
        there_N = self._positions_N < arrived(self._sizes_A, self._stream, round_index)[self._row_N]
        known_A = np.bincount(self._row_N[there_N], minlength=len(self.agents))
        sizes_A = np.maximum(known_A, 1)
        turns_A = np.full(len(sizes_A), round_index * MOST_STEPS + step)
        chosen_N = _shuffled(self._seed, "weights", self.agents, turns_A, sizes_A)
        first_A = np.cumsum(self._counts_A) - self._counts_A  # labelled samples arrive in the order of positions
        positions_N = self._positions_N[np.repeat(first_A, sizes_A) + chosen_N] * np.repeat(known_A > 0, sizes_A)
        starts_A = np.cumsum(sizes_A) - sizes_A
        return _cut(positions_N, starts_A, np.minimum(sizes_A, self._batch_size), self._width)


def _require_samples(sizes_A: NDArray[np.int64], agents_A: NDArray[np.int64]) -> None:
    if len(sizes_A) and sizes_A.min() < 1:
        raise ValueError(f"agent {agents_A[sizes_A.argmin()]} has no samples to draw batches from")


def _shuffled(
    seed: int, purpose: str, agents_A: NDArray[np.int64], turns_A: NDArray[np.int64], sizes_A: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The positions 0..size-1 of every agent, sorted by random keys, one agent after another."""
    row_N = np.repeat(np.arange(len(sizes_A)), sizes_A)
    sample_N = _places(sizes_A)
    key_N = random_keys(seed, purpose, agents_A[row_N], turns_A[row_N], sample_N)
    return sample_N[np.lexsort((key_N, row_N))]


def _places(sizes_A: NDArray[np.int64]) -> NDArray[np.int64]:
    """0..size-1 for every agent, one agent after another."""
    return np.arange(sizes_A.sum()) - np.repeat(np.cumsum(sizes_A) - sizes_A, sizes_A)


def _cut(
    positions_N: NDArray[np.int64], first_A: NDArray[np.int64], valid_A: NDArray[np.int64], width: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """From each agent's `first` the next `valid` positions as a row [A, B], and which entries those are."""
    column_B = np.arange(width)
    mask_AB = column_B < valid_A[:, None]
    return positions_N[first_A[:, None] + np.where(mask_AB, column_B, 0)], mask_AB
