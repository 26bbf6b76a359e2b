"""What of a rank's agents goes into a checkpoint, and back: everything is keyed by agent id, never by rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from parse_mpi.agents.group import AgentGroup
from parse_mpi.errors import StorageError
from parse_mpi.exchange.world import World
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.shard import AgentArray


class Snapshot:
    """Copies in host memory of what belongs to a group's agents, so that they can be written while it trains on.

    The memory is kept from one time to the next: touching new pages takes longer than copying.
    """

    def __init__(self, group: AgentGroup):
        self._group = group
        self._copies: dict[str, Tensor] = {}
        self._orders = {
            name: torch.from_numpy(np.argsort(rows.agents)).to(group.device) for name, rows in group.slices.items()
        }
        self._order = torch.from_numpy(np.argsort(group.ids)).to(group.device)

    def take(self) -> list[AgentArray]:
        """Parameters and optimiser state of every slice, each agent's position in its data, and what the weight of its
        alignment term remembers, as they are now; agents in ascending id. Overwrites what was taken before.

        Random streams and graph schedules are functions of the job's seed and the round, so that nothing of them is
        stored beside the header's seed and the round itself.
        """
        group, arrays = self._group, []
        for name, rows in group.slices.items():
            ids = np.sort(rows.agents)
            for key, matrix in rows.matrices().items():
                label = f"slices/{name}/{key}"
                arrays.append(AgentArray(label, ids, self._copy(label, matrix, self._orders[name])))
        ids = np.sort(group.ids)
        arrays.append(AgentArray("agents/steps", ids, np.full(len(ids), group.steps, np.int64)))
        for key, state in group.alignment.state.items():
            label = f"agents/{key}"
            arrays.append(AgentArray(label, ids, self._copy(label, state, self._order)))
        return arrays

    def _copy(self, label: str, matrix: Tensor, order: Tensor) -> np.ndarray:
        on_gpu = matrix.device.type == "cuda"
        if label not in self._copies:
            self._copies[label] = torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=on_gpu)
        copy = self._copies[label]
        if on_gpu:
            copy.copy_(matrix.index_select(0, order))
        else:
            torch.index_select(matrix, 0, order, out=copy)
        return copy.numpy()


def on_first_rank(node: World, arrays: Sequence[AgentArray]) -> list[AgentArray]:
    """The rows of all ranks of a node on its first rank, agents in ascending id; nothing on the others."""
    own = {array.name: array for array in arrays}
    told = node.all_json({name: [array.values.dtype.str, array.values.shape[1:]] for name, array in own.items()})
    merged = []
    for name, (dtype, shape) in {name: row for rank in told for name, row in rank.items()}.items():
        nothing = np.empty(0, np.int64), np.empty((0, *shape), dtype)
        ids, values = (own[name].agents, own[name].values) if name in own else nothing
        if collected := node.collect_agents(ids, values):
            merged.append(AgentArray(name, *collected))
    return merged


def restore(group: AgentGroup, checkpoint: Checkpoint) -> None:
    """Give every agent of the group its state back. Raises StorageError where one is missing or has another shape."""
    for name, rows in group.slices.items():
        for key, matrix in rows.matrices().items():
            values = checkpoint.read(f"slices/{name}/{key}", rows.agents)
            if values.shape != tuple(matrix.shape):
                raise StorageError(
                    f"{checkpoint.path}: {name}/{key} has {values.shape[1]} columns, this version of parse_mpi makes "
                    f"{matrix.shape[1]}.\nGo on with the version in provenance.yaml, or start over with --fresh."
                )
            matrix.copy_(torch.from_numpy(values))
    group.steps = checkpoint.round_index * group.plan.job.train.local_steps
    if (steps := checkpoint.read("agents/steps", group.ids)).size and set(steps.tolist()) != {group.steps}:
        raise StorageError(f"{checkpoint.path}: agents stand at local steps {np.unique(steps).tolist()}")
    for key, state in group.alignment.state.items():
        state.copy_(torch.from_numpy(checkpoint.read(f"agents/{key}", group.ids)))
