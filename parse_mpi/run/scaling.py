"""The standardisation of a run in its directory, so that trained agents can be used without its data and MPI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from parse_mpi.agents.samples import Standardisation
from parse_mpi.errors import StorageError
from parse_mpi.model.encoder_problems import own_sources
from parse_mpi.population import Agent
from parse_mpi.storage.metrics import read_table, write_table

TABLE = "scaling"


def write_scaling(run_dir: Path, scaling: Standardisation, sources: str) -> None:
    """Keep mean and scale by modality, and what `encoder_sources` gives; on rank 0 alone. Raises StorageError."""
    arrays = {f"{TABLE}/{m}/mean": mean for m, mean in scaling.mean.items()}
    arrays |= {f"{TABLE}/{m}/scale": scale for m, scale in scaling.scale.items()}
    write_table(run_dir, TABLE, arrays, {TABLE: {"own_encoders": sources}})


def read_scaling(run_dir: Path) -> tuple[Standardisation, str]:
    """What write_scaling was given. Raises StorageError, also where a version that did not keep it began the run."""
    table = read_table(run_dir, TABLE)
    if table is None:
        raise StorageError(
            f"{run_dir}: its standardisation was not kept (there is no metrics/table-{TABLE}.h5): an earlier version "
            "began this run.\nEvery launch that trains writes it: start the same command again, with a round more "
            "(--set train.rounds=...) if the run has finished"
        )
    modalities = dict.fromkeys(name.split("/")[1] for name in table.arrays)
    mean, scale = ({m: table[f"{TABLE}/{m}/{key}"] for m in modalities} for key in ("mean", "scale"))
    return Standardisation(mean, scale), str(table.attributes[TABLE]["own_encoders"])


def encoder_sources(populations: Iterable[Sequence[Agent]]) -> str:
    """Digests of the Python files that own encoders of these agents come from; "" where they have none."""
    return ",".join(own_sources(encoder for agents in populations for agent in agents for encoder in agent.encoders))
