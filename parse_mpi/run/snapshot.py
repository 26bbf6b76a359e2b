"""What of a rank's agents goes into a checkpoint, and back: everything is keyed by agent id, never by rank."""

from __future__ import annotations

import numpy as np
import torch

from parse_mpi.agents.group import AgentGroup
from parse_mpi.errors import StorageError
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.shard import AgentArray


def snapshot(group: AgentGroup) -> list[AgentArray]:
    """Host arrays of parameters and optimiser state of every slice, each agent's position in its data, and what the
    weight of its alignment term remembers.

    Where rows stand in ascending id on a CPU, as they do when the job lists every kind once, they are views of the
    live rows, not copies: write them before the next step.

    Random streams and graph schedules are functions of the job's seed and the round, so that nothing of them is stored
    beside the header's seed and the round itself.
    """
    arrays = []
    for name, rows in group.slices.items():
        order = np.argsort(rows.agents)
        for key, matrix in rows.matrices().items():
            in_order = bool((np.diff(order) == 1).all())
            values = matrix.cpu().numpy()
            arrays.append(AgentArray(f"slices/{name}/{key}", rows.agents[order], values if in_order else values[order]))
    order = np.argsort(group.ids)
    ids = group.ids[order]
    arrays.append(AgentArray("agents/steps", ids, np.full(len(ids), group.steps, np.int64)))
    for key, state in group.alignment.state.items():
        arrays.append(AgentArray(f"agents/{key}", ids, state.cpu().numpy()[order]))
    return arrays


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
