"""parse_mpi: decentralised multimodal learning with PARSE on MPI ranks (arXiv 2601.10012)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parse_mpi.studies.trained import TrainedAgent

__all__ = ["load_agent"]
__version__ = "0.1.0"


def load_agent(run: str | Path, agent: int, round: int | None = None) -> TrainedAgent:
    """A trained agent of a run directory as a plain `torch.nn.Module` on the CPU; its data and MPI are not needed.

    agent: its id. round: of the checkpoint to load, by default the newest sound one. The module takes raw samples, as
    they stand in the data file, modality -> [B, *sample], to logits [B, C]; `.predict` gives names of classes.
    Raises StorageError where there is no such agent or checkpoint, or it can't be trusted.
    """
    from parse_mpi.studies.trained import load_agent as load

    return load(Path(run), agent, round)
