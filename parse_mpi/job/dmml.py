"""DMML-KD: features that all modalities have in common, and a generator of them (docs/method.md, section 2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Count, Section, Weight
from parse_mpi.job.method import Learner


class Generator(Section):
    """The generator of common features: noise and a class in, one hidden layer. points: of noise, for each class."""

    noise: Annotated[int, Field(ge=1, le=256)] = 8
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 64
    points: Annotated[int, Field(ge=1, le=256)] = 4


class Balance(Section):
    """Training balance: the faster an encoder changes, the fewer of its agent's local steps it takes.

    decay: of the average over rounds in which its speed is known. least: the smallest share of the steps.
    """

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    least: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


class DmmlKdMethod(Learner):
    """DMML-KD (arXiv 2311.06500).

    common: width of the common part of a latent vector, by default half of it. common_weight: of the cross-entropy of
    the head that reads common features alone. kd_weight: of their distance from what the generator gives. balance: of
    modalities that learn fast with those that learn slowly; without it all take every step.
    """

    name: Literal["dmml-kd"]
    common: Count | None = None
    fusion: Literal["mean", "concat", "attention"] = "mean"
    label_head: Literal["linear", "mlp"] = "linear"
    common_weight: Weight = 1.0
    kd_weight: Weight = 1.0
    generator: Generator = Generator()
    balance: Balance | None = None

    @model_validator(mode="after")
    def _both_parts_have_room(self) -> DmmlKdMethod:
        if not 1 <= self.common_width < self.slices.total:
            raise ValueError(f"common: {self.common_width} leaves nothing of {self.slices.total} to the other part")
        return self

    @property
    def common_width(self) -> int:
        """Positions of a latent vector that belong to its common part; the others are specific."""
        return self.slices.total // 2 if self.common is None else self.common
