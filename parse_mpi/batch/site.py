"""A site file: what a cluster's batch scripts need that no job knows (slurm/site.yaml explains the keys)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from parse_mpi.errors import BatchError
from parse_mpi.job.base import Section
from parse_mpi.jobfile import in_reading_order
from parse_mpi.jobpaths import SHIPPED_DIRS
from parse_mpi.run.preemption import seconds_of
from parse_mpi.specfile import read_spec

VARIABLE = "PARSE_MPI_SITE"
Line = Annotated[str, Field(pattern=r"^[^\n\r]*$")]
Option = Annotated[str, Field(pattern=r"^--?[A-Za-z][^\n\r]*$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Node(Section):
    """One node. nics: network devices nearest to its first, second, ... rank."""

    cores: Annotated[int, Field(ge=1, le=100_000)] = 1
    numa_domains: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    gpu_option: Literal["gpus-per-node", "gres=gpu"] = "gpus-per-node"
    nics: tuple[Line, ...] = ()
    nic_variable: Name = "UCX_NET_DEVICES"

    @property
    def ranks(self) -> int:
        """Ranks on a node: one for each GPU, without GPUs one for each NUMA domain."""
        return self.gpus or self.numa_domains


class Bind(Section):
    """What srun binds ranks to; "" leaves an option out."""

    cpu: Line = "cores"
    memory: Line = ""
    gpu: Line = "none"


class Network(Section):
    """What is known of the network between nodes without having measured it.

    latency_us: of a message between two nodes. bandwidth_gb_s: gigabytes a second that a node sends.
    """

    latency_us: Annotated[float, Field(gt=0, le=1e6)]
    bandwidth_gb_s: Annotated[float, Field(gt=0, le=1e5)]

    @property
    def message_s(self) -> float:
        return self.latency_us * 1e-6

    @property
    def byte_s(self) -> float:
        return 1e-9 / self.bandwidth_gb_s


class Site(Section):
    """A whole site file."""

    partition: Line = ""
    account: Line = ""
    qos: Line = ""
    directives: tuple[Option, ...] = ()
    mpi: Line = "pmi2"
    setup: tuple[Line, ...] = ()
    environment: Mapping[Name, Line] = Field(default_factory=dict)
    node: Node = Node()
    bind: Bind = Bind()
    srun: tuple[Option, ...] = ()
    network: Network | None = None
    time: str = "1:00:00"
    signal_s: Annotated[int, Field(ge=1, le=65_535)] = 120
    restarts: Annotated[int, Field(ge=1, le=1000)] = 3

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        seconds_of(text)
        return text


def find_site(named: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The file that is named, otherwise that of $PARSE_MPI_SITE, otherwise the defaults that came with the package."""
    if named is not None:
        return named
    if environment.get(VARIABLE):
        return Path(environment[VARIABLE])
    return shipped("site.yaml")


def shipped(name: str) -> Path:
    """A file of slurm/, which lies in a wheel or in the source tree."""
    return next(path for folder in SHIPPED_DIRS if (path := folder / "slurm" / name).is_file())


def read_site(path: Path) -> Site:
    """Read a site file. Raises BatchError with every problem as file:line."""
    document, site = read_spec(path, Site, BatchError, "site", "slurm/site.yaml is one to copy")
    if document.problems:
        raise BatchError(in_reading_order(document.problems))
    return site
