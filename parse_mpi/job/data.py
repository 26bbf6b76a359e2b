"""Data: where samples come from and how they are dealt."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.errors import counted
from parse_mpi.job.agents import Chosen
from parse_mpi.job.base import Count, Positive, Section, Weight

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class Digits(Section):
    """How the built-in images are cut into modalities."""

    cut: Literal["halves", "quadrants"]


class DigitsSource(Section):
    """The built-in handwritten digits in another cut than `source: digits`, which means halves."""

    digits: Digits


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
    """A file of the layout in docs/file-formats.md; a relative path is relative to the job file.

    reading: the whole file into memory, or each sample when it is needed; auto decides by the memory that is free.
    split: the file's own, or one that the job's seed draws inside every class, in the same proportions.
    """

    hdf5: str
    reading: Literal["auto", "memory", "lazy"] = "auto"
    split: Literal["file", "fresh"] = "file"


class PidSourceKey(Section):
    pid: PidSource


# The key that a kind of partition needs and no other kind knows, with what to write there.
PARTITION_KEYS = {
    "dirichlet": ("alpha", "0.1 very skewed, 0.5 skewed, 100 nearly iid"),
    "label-shard": ("shards", "per agent; with 2 most agents see two classes"),
    "explicit": ("file", "a text file with one agent id per training sample"),
}


class Partition(Section):
    """How training samples are dealt to agents: each sample goes to at most one agent.

    shards: how many pieces of the samples sorted by class an agent gets. file: the owner of every training sample, one
    id a line, -1 for nobody; a relative path is relative to the job file.
    """

    kind: Literal["iid", "dirichlet", "label-shard", "by-group", "explicit"] = "iid"
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    shards: Count | None = None
    file: str | None = None
    min_per_agent: Count = 2

    @model_validator(mode="after")
    def _keys_belong_to_their_kind(self) -> Partition:
        for kind, (key, example) in PARTITION_KEYS.items():
            given = getattr(self, key) is not None
            if self.kind == kind and not given:
                raise ValueError(f"kind: {kind} needs {key} ({example})")
            if self.kind != kind and given:
                raise ValueError(f"{key} belongs to kind: {kind}")
        return self


class PoorSensor(Section):
    """Agents whose sensor of one modality is poor, in training and in evaluation.

    agents: a share is drawn among those that hold the modality. noise: standard deviation of the Gaussian noise on
    every standardised feature. missing: the share of samples in which the modality is zero after standardisation.
    """

    agents: Chosen
    modality: str
    noise: Weight = 0.0
    missing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0

    @model_validator(mode="after")
    def _is_poor(self) -> PoorSensor:
        if self.noise == 0.0 and self.missing == 0.0:
            raise ValueError("say how poor the sensor is: noise above 0, missing above 0, or both")
        return self


class Stream(Section):
    """Samples arrive over the rounds: a share is there at the `start`, all of them after `rounds` rounds.

    order: of arrival; by-class: one class after another, in the order of their numbers.
    """

    start: Fraction = 0.2
    rounds: Count = 200
    order: Literal["random", "by-class"] = "random"


class Data(Section):
    """labelled_fraction: of each agent's training samples, the share that keeps its label."""

    source: Literal["digits"] | DigitsSource | Hdf5Source | PidSourceKey = "digits"
    partition: Partition = Partition()
    labelled_fraction: Fraction = 1.0
    poor: tuple[PoorSensor, ...] = ()
    stream: Stream | None = None
