"""The schema of a job file: what may stand in it, with defaults and limits. Reading one is jobfile.py's.

Every field's name is the key in the YAML file and the attribute in HDF5. What the paper leaves open is a key
here, with a default that docs/method.md, section 8, lists and explains.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from parse_mpi.job.agents import AgentKind
from parse_mpi.job.base import Section
from parse_mpi.job.data import Data, Hdf5Source, Partition, PidSource, PidSourceKey
from parse_mpi.job.encoder import Encoder
from parse_mpi.job.method import LocalMethod, Method, Network, ParseMethod, SliceWidths
from parse_mpi.job.topology import GRAPH_KINDS, Topology
from parse_mpi.job.train import Checkpoint, Evaluate, Exchange, Optimiser, Train

__all__ = [
    "GRAPH_KINDS",
    "AgentKind",
    "Checkpoint",
    "Data",
    "Encoder",
    "Evaluate",
    "Exchange",
    "Hdf5Source",
    "Job",
    "LocalMethod",
    "Method",
    "Network",
    "Optimiser",
    "ParseMethod",
    "Partition",
    "PidSource",
    "PidSourceKey",
    "SliceWidths",
    "Topology",
    "Train",
]


def _exchange_shorthand(value: object) -> object:
    return {"via": value} if isinstance(value, str) else value


class Job(Section):
    """A whole job file, resolved: every default filled in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    agents: Annotated[tuple[AgentKind, ...], Field(min_length=1)]
    topology: Topology
    method: Method
    encoder: Encoder = Encoder()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    exchange: Annotated[Exchange, BeforeValidator(_exchange_shorthand)] = Exchange()
    mode: Literal["fast", "exact"] = "fast"
    engine: Literal["auto", "loop", "stacked"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("engine")
    @classmethod
    def _exact_needs_the_loop(cls, engine: str, others: ValidationInfo) -> str:
        if others.data.get("mode") == "exact" and engine == "stacked":
            raise ValueError(
                "mode: exact needs engine: loop; the last bits of stacked agents depend on who else is stacked"
            )
        return engine
