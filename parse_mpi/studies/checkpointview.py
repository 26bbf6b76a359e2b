"""`parse-mpi inspect`: what a checkpoint holds, as tables. Needs neither torch nor MPI.

Shapes: A agents with a row, P parameters of a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from parse_mpi.errors import StorageError, counted
from parse_mpi.job.events import SensorEvent
from parse_mpi.run.summary import size_text
from parse_mpi.storage.checkpoint import Checkpoint, require_newest
from parse_mpi.storage.manifest import MANIFEST_NAME, ArrayEntry
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.storage.write import storage_errors
from parse_mpi.studies.recorded import era_of, recorded_job
from parse_mpi.studies.tables import make_table, open_console

READ_BYTES = 1 << 26  # at once, of one array

_PARAMETERS = "parameters"


@dataclass
class SliceState:
    """A slice in a checkpoint: who holds it, what is kept of it, and whether that can be computed with.

    norms: L2 norm of each agent's parameters, float64 [A]. nonfinite: array -> ids of rows with NaN or infinity.
    """

    agents: NDArray[np.int64]
    parameters: ArrayEntry
    arrays: list[str]
    norms: NDArray[np.float64]
    nonfinite: dict[str, list[int]] = field(default_factory=dict)


def print_checkpoint(path: Path, each_agent: bool) -> None:
    """Print what a checkpoint holds; `path` is its directory, or a run, which means its newest sound checkpoint.

    Reads and checks every shard. Raises StorageError where `path` is neither, or something is damaged.
    """
    console = open_console()
    checkpoint = _find(RunDirectory(path).path, console)
    slices = read_slices(checkpoint)
    for line in _header(checkpoint):
        console.print(line, markup=False)
    console.print(_slice_table(slices))
    if each_agent:
        console.print(_agent_table(checkpoint, slices))
    for name, state in slices.items():
        for array, agents in state.nonfinite.items():
            what = f"NOT FINITE: {array} of {name} in {counted(len(agents), 'agent')}: {', '.join(map(str, agents))}"
            console.print(what, style="bold red", markup=False)


def read_slices(checkpoint: Checkpoint) -> dict[str, SliceState]:
    """Every slice of a checkpoint, by name. Raises StorageError where a shard is damaged or holds something else."""
    arrays: defaultdict[str, list[str]] = defaultdict(list)
    for name in checkpoint.names():
        group, _, array = name.rpartition("/")
        if group.startswith("slices/"):
            arrays[group.removeprefix("slices/")].append(array)
    return {name: _read_slice(checkpoint, name, found) for name, found in arrays.items()}


def _read_slice(checkpoint: Checkpoint, name: str, arrays: list[str]) -> SliceState:
    entries = {array: checkpoint.manifest.arrays[f"slices/{name}/{array}"] for array in arrays}
    if _PARAMETERS not in entries or any(len(e.shape) != 1 or np.dtype(e.dtype).kind != "f" for e in entries.values()):
        raise StorageError(f"{checkpoint.path}: {name} is not kept as one row of numbers an agent")
    parameters = entries[_PARAMETERS]
    state = SliceState(parameters.agents, parameters, arrays, np.empty(0))
    for array in arrays:
        norms, finite = [np.empty(0)], [np.empty(0, bool)]
        for rows in _blocks(checkpoint, f"slices/{name}/{array}"):
            with np.errstate(over="ignore"):
                norms.append(np.linalg.norm(rows.astype(np.float64), axis=1))
            finite.append(np.isfinite(rows).all(axis=1))
        if array == _PARAMETERS:
            state.norms = np.concatenate(norms)
        if len(bad := state.agents[~np.concatenate(finite)]):
            state.nonfinite[array] = bad.tolist()
    return state


def _blocks(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.floating]]:
    """The rows of an array in ascending id, as many at once as fit into READ_BYTES."""
    entry = checkpoint.manifest.arrays[name]
    row_bytes = int(np.prod(entry.shape)) * np.dtype(entry.dtype).itemsize
    count = max(READ_BYTES // max(row_bytes, 1), 1)
    for start in range(0, len(entry.agents), count):
        yield checkpoint.read(name, entry.agents[start : start + count])


def _find(path: Path, console: Console) -> Checkpoint:
    """The checkpoint that is meant."""
    with storage_errors(path, "can't be read"):
        is_checkpoint = (path / MANIFEST_NAME).exists()
    if is_checkpoint:
        return Checkpoint(path)
    if not RunDirectory(path).exists():
        what = "neither a checkpoint (no manifest.json) nor a run (no job.yaml)" if path.is_dir() else "no directory"
        raise StorageError(f"{path}: {what}. Name a run, or one of its checkpoints: RUN/checkpoints/round-...")
    checkpoint, rejections = require_newest(path)
    for rejection in rejections:
        console.print(str(rejection), style="bold red", markup=False)
    return checkpoint


def _header(checkpoint: Checkpoint) -> Iterator[str]:
    manifest = checkpoint.manifest
    held = {agent for entry in manifest.arrays.values() for agent in entry.agents.tolist()}
    yield (
        f"{checkpoint.path}: after round {manifest.round}, {counted(len(held), 'agent')}, "
        f"{counted(len(manifest.shards), 'shard')} of {size_text(manifest.size_bytes)}, "
        f"format version {manifest.format_version}"
    )
    yield ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in manifest.header.items())


def _slice_table(slices: dict[str, SliceState]) -> Table:
    rows = []
    for name, state in slices.items():
        finite = state.norms[np.isfinite(state.norms)]
        spread = [f"{f(finite):.4g}" if len(finite) else "–" for f in (np.min, np.median, np.max)]
        cells = (str(len(state.agents)), f"{state.parameters.shape[0]:,}", np.dtype(state.parameters.dtype).name)
        rows.append((name, *cells, ", ".join(a for a in state.arrays if a != _PARAMETERS) or "–", *spread))
    columns = ("slice", "holders", "parameters", "dtype", "kept beside", "norm: least", "median", "most")
    return make_table("Slices (norm: L2, of an agent's parameters)", columns, ("slice", "kept beside"), rows)


def _agent_table(checkpoint: Checkpoint, slices: dict[str, SliceState]) -> Table:
    """Agent x the norm of its parameters in each slice that it holds, with the modalities that the run's job gives."""
    held: defaultdict[int, list[str]] = defaultdict(list)
    for name, state in slices.items():
        for agent, norm in zip(state.agents.tolist(), state.norms.tolist(), strict=True):
            held[agent].append(f"{name}={norm:.4g}")
    kinds = _kinds(checkpoint)
    rows = [(str(agent), kinds.get(agent, "?"), ", ".join(held[agent])) for agent in sorted(held)]
    return make_table("Agents (norm of each slice)", ("agent", "holds", "slices"), ("holds", "slices"), rows)


def _kinds(checkpoint: Checkpoint) -> dict[int, str]:
    """What each agent holds after the checkpoint's round; empty where the checkpoint lies outside its run."""
    run = RunDirectory(checkpoint.path.parent.parent)
    if not run.exists():
        return {}
    job = recorded_job(run)
    gained = [event.modality for event in job.events if isinstance(event, SensorEvent)]
    modalities = list(dict.fromkeys([m for entry in job.agents for m in entry.modalities] + gained))
    return {agent.id: agent.kind or "– (away)" for agent in era_of(job, modalities, checkpoint).agents}
