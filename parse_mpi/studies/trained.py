"""Trained agents as plain PyTorch modules, from a run directory alone: neither the data set nor MPI is needed.

Shapes: B samples, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from parse_mpi.agents.samples import Standardisation
from parse_mpi.data.normalise import FARTHEST
from parse_mpi.eras import Era, everyone, make_eras
from parse_mpi.errors import DataError, StorageError
from parse_mpi.methods import make_method
from parse_mpi.methods.base import Method, SliceSpec
from parse_mpi.methods.layout import slice_layouts
from parse_mpi.model.names import module_key
from parse_mpi.model.own import EncoderError
from parse_mpi.population import Agent, make_agents
from parse_mpi.run.scaling import encoder_sources, read_scaling
from parse_mpi.storage.checkpoint import Checkpoint, checkpoints_dir, open_checkpoint, require_newest, rounds_in
from parse_mpi.storage.metrics import read_table
from parse_mpi.storage.rundir import RunDirectory
from parse_mpi.studies.recorded import era_of, recorded_job


class Standardise(nn.Module):
    """Raw samples [B, *sample] of a modality to what networks see; the arithmetic of agents.samples.Standardisation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: NDArray[np.float32], scale: NDArray[np.float32]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.scale).clamp(-FARTHEST, FARTHEST)


class TrainedAgent(nn.Module):
    """An agent as it was after `round` rounds of a run; raw samples, as in the data file, to logits of its ensemble.

    A poor sensor that the job gave to the agent is no part of it.
    """

    def __init__(
        self,
        agent: Agent,
        method: Method,
        network: nn.Module,
        scaling: Standardisation,
        class_names: Sequence[str],
        round_index: int,
    ):
        super().__init__()
        self.id = agent.id
        self.modalities = agent.modalities
        self.kind = agent.kind
        self.class_names = tuple(class_names)
        self.round = round_index
        self.network = network
        self.standardise = nn.ModuleDict(
            {module_key(m): Standardise(scaling.mean[m], scaling.scale[m]) for m in agent.modalities}
        )
        self._method = method

    def forward(self, x: Mapping[str, Tensor | ArrayLike]) -> Tensor:
        """Logits [B, C] for x: modality -> [B, *sample], every modality that the agent holds and no other.

        Raises DataError where x is something else.
        """
        dtype = next(self.network.parameters()).dtype
        samples = self._samples(x)
        output = self.network({m: self._scaler(m)(values).to(dtype) for m, values in samples.items()})
        return self._method.predictions(output, self.modalities)["ensemble"]

    @torch.no_grad()
    def predict(self, x: Mapping[str, Tensor | ArrayLike]) -> list[str]:
        """The name of the class that each sample most likely belongs to; x as for `forward`, all values finite."""
        samples = self._samples(x)
        for m, values in samples.items():
            if len(strange := (~values.isfinite()).nonzero()):
                raise DataError(f"{m}: sample {int(strange[0, 0])} has a value that is nan, or infinite in float32")
        return [self.class_names[c] for c in self(samples).argmax(-1).tolist()]

    def extra_repr(self) -> str:
        return f"agent {self.id} with {self.kind} after round {self.round}, {len(self.class_names)} classes"

    def _scaler(self, modality: str) -> Standardise:
        scaler = self.standardise[module_key(modality)]
        assert isinstance(scaler, Standardise)
        return scaler

    def _samples(self, x: Mapping[str, Tensor | ArrayLike]) -> dict[str, Tensor]:
        """x as float32 on the device of the module, in the order of its modalities."""
        if set(x) != set(self.modalities):
            given = ", ".join(x) or "nothing"
            raise DataError(f"agent {self.id} holds {', '.join(self.modalities)}; it was given {given}")
        samples = {m: _as_float(m, x[m], self._scaler(m).mean.device) for m in self.modalities}
        for m, values in samples.items():
            expected = tuple(self._scaler(m).mean.shape)
            if not values.ndim or tuple(values.shape[1:]) != expected:
                shape = ", ".join(["B", *map(str, expected)])
                raise DataError(f"{m}: {list(values.shape)} was given, [{shape}] is expected for B samples")
        if len({len(values) for values in samples.values()}) > 1:
            counts = ", ".join(f"{m} {len(values)}" for m, values in samples.items())
            raise DataError(f"the numbers of samples differ: {counts}")
        return samples


def load_agent(run_dir: Path, agent: int, round_index: int | None = None) -> TrainedAgent:
    """An agent of a run from its newest sound checkpoint, or from that of a round, in evaluation mode on the CPU.

    Raises StorageError where there is no such agent or checkpoint, where something is damaged, and where an own encoder
    is not there any more or has changed.
    """
    run = RunDirectory(run_dir)
    run.require()
    job, checkpoint = recorded_job(run), _checkpoint(run.path, round_index)
    scaling, sources = read_scaling(run.path)
    modalities, class_names = _names(run.path)
    agents = make_agents(job, modalities)
    planned, _ = make_eras(job, agents, modalities)
    _require_encoders(run.path, planned, sources)

    era = era_of(job, modalities, checkpoint)
    held = _present(run.path, era.agents, agent, checkpoint.round_index)
    method = make_method(job).at(era.start)
    shapes = {m: tuple(mean.shape) for m, mean in scaling.mean.items()}
    with torch.device("meta"):
        network = method.network(held, shapes, len(class_names), seed=0)
    _fill(network, held, method.slices(era.agents, everyone(agents, planned)), checkpoint)
    return TrainedAgent(held, method, network, scaling, class_names, checkpoint.round_index).eval()


def _checkpoint(run_dir: Path, round_index: int | None) -> Checkpoint:
    if round_index is None:
        checkpoint, rejections = require_newest(run_dir)
        for rejection in rejections:
            warnings.warn(f"{run_dir}: {rejection}", stacklevel=4)  # where parse_mpi.load_agent was called
        return checkpoint
    rounds = rounds_in(checkpoints_dir(run_dir))
    if round_index not in rounds:
        kept = ", ".join(map(str, rounds)) or "none yet"
        raise StorageError(f"{run_dir}: no checkpoint of round {round_index} is kept; there are {kept}")
    return open_checkpoint(run_dir, round_index)


def _names(run_dir: Path) -> tuple[list[str], list[str]]:
    """All modalities in the order of the data set, and the classes."""
    table = read_table(run_dir, "plan")
    if table is None:
        raise StorageError(f"{run_dir}: metrics/table-plan.h5 is missing; what else is tells: parse-mpi verify RUN")
    modalities, class_names = (
        [str(name) for name in np.atleast_1d(np.asarray(table.attributes["agents"][key]))]
        for key in ("modalities", "class_names")
    )
    return modalities, class_names


def _require_encoders(run_dir: Path, eras: Sequence[Era], recorded: str) -> None:
    """Raises StorageError unless the files of own encoders are there and the same as when the run trained."""
    go_on = "Agents of this run need the own encoders that it was trained with: put their file back as it was"
    try:
        found = encoder_sources(era.agents for era in eras)
    except EncoderError as error:
        raise StorageError(f"{run_dir}: {error}.\n{go_on}.") from error
    if found != recorded:
        raise StorageError(f"{run_dir}: the file of an own encoder has changed since.\n{go_on}.")


def _present(run_dir: Path, agents: Sequence[Agent], agent: int, round_index: int) -> Agent:
    if not 0 <= agent < len(agents):
        raise StorageError(f"{run_dir}: there is no agent {agent}; ids go from 0 to {len(agents) - 1}")
    if not agents[agent].modalities:
        raise StorageError(
            f"{run_dir}: agent {agent} is away in round {round_index}: it left, was cut off, or joins later. "
            f"Choose another round; checkpoints: {', '.join(map(str, rounds_in(checkpoints_dir(run_dir))))}"
        )
    return agents[agent]


def _fill(network: nn.Module, agent: Agent, slices: Sequence[SliceSpec], checkpoint: Checkpoint) -> None:
    """Give a network on the meta device the parameters that the agent has in the checkpoint."""
    values: dict[str, Tensor] = {}
    for name, layout in slice_layouts([(agent, network)], slices).items():
        row = torch.from_numpy(checkpoint.read(f"slices/{name}/parameters", np.array([agent.id]))[0])
        if len(row) != layout.width:
            raise StorageError(
                f"{checkpoint.path}: {name} has {len(row)} parameters, this version of parse_mpi makes {layout.width}."
                "\nLoad the agent with the version in provenance.yaml."
            )
        # Clones, as the last bits of a product of matrices may depend on where in memory they begin.
        values |= {span.name: row[span.start : span.stop].view(span.shape).clone() for span in layout.spans}
    network.load_state_dict(values, assign=True)


def _as_float(modality: str, values: Tensor | ArrayLike, device: torch.device) -> Tensor:
    """float32 on the device; arrays are copied, since PyTorch warns of those that can't be written to."""
    try:
        tensor = values if isinstance(values, Tensor) else torch.tensor(np.array(values, np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"{modality}: no array of numbers: {error}") from error
    return tensor.to(device, torch.float32)
