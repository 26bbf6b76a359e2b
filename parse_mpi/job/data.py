"""Data: where samples come from and how they are dealt."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.errors import counted
from parse_mpi.job.base import Count, Positive, Section


class PidSource(Section):
    """Generated data with known answers (method.md section 7): y = (c, u1, u2, s1 xor s2) over the chosen bits."""

    redundant_bits: Annotated[int, Field(ge=0, le=4)] = 1
    unique_bits: tuple[Annotated[int, Field(ge=0, le=4)], Annotated[int, Field(ge=0, le=4)]] = (1, 1)
    synergistic_bits: Annotated[int, Field(ge=0, le=4)] = 1
    noise: Positive = 0.4
    features: Annotated[int, Field(ge=1, le=10_000)] = 16
    samples: Annotated[int, Field(ge=10, le=1_000_000)] = 12_000

    @model_validator(mode="after")
    def _bits_fit(self) -> PidSource:
        label_bits = self.redundant_bits + sum(self.unique_bits) + self.synergistic_bits
        if not 1 <= label_bits <= 8:
            raise ValueError(f"the label has {label_bits} bits in all; it can have 1 to 8")
        widest = self.redundant_bits + max(self.unique_bits) + self.synergistic_bits
        if self.features < widest:
            raise ValueError(f"features: {counted(self.features, 'dimension')} can't hold {widest} orthonormal bits")
        return self


class Hdf5Source(Section):
    """A file of the layout in docs/file-formats.md; a relative path is relative to the job file."""

    hdf5: str


class PidSourceKey(Section):
    pid: PidSource


class Partition(Section):
    """How training samples are dealt to agents: each sample goes to exactly one agent."""

    kind: Literal["iid", "dirichlet"] = "iid"
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    min_per_agent: Count = 2

    @model_validator(mode="after")
    def _alpha_belongs_to_dirichlet(self) -> Partition:
        if self.kind == "dirichlet" and self.alpha is None:
            raise ValueError("kind: dirichlet needs alpha (0.1 very skewed, 0.5 skewed, 100 nearly iid)")
        if self.kind == "iid" and self.alpha is not None:
            raise ValueError("alpha belongs to kind: dirichlet")
        return self


class Data(Section):
    source: Literal["digits"] | Hdf5Source | PidSourceKey = "digits"
    partition: Partition = Partition()
