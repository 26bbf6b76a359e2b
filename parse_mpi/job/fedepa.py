"""FedEPA: personalised aggregation of encoders, and alignment that needs no labels (docs/method.md, section 4)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Count, Section, Weight
from parse_mpi.job.method import Learner


class LearntWeights(Section):
    """What an agent takes of its neighbours' mean, learnt for every parameter of its encoders.

    rate: length of a step. first_steps: at most so many in the second round, which end once the standard deviation of
    the last ten losses is below `steady`. steps: in every round after that. In the first round there are none.
    """

    rate: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    first_steps: Count = 50
    steady: Annotated[float, Field(ge=0.0, le=1e3)] = 0.1
    steps: Count = 1

    def most_steps(self, rounds: int) -> int:
        """Steps in the first so many rounds, where the second one has as many as it may."""
        return self.first_steps * (rounds > 1) + self.steps * max(0, rounds - 2)


class Independence(Section):
    """How dependence between the aligned and the context part of a modality is measured, and what it weighs."""

    kind: Literal["correlation", "hsic"] = "correlation"
    weight: Weight = 1.0


class FedepaMethod(Learner):
    """FedEPA (arXiv 2504.12025).

    weights: learnt, or one number for all parameters of encoders: 1 is DSGD, 0 leaves encoders where they are.
    alignment: weight of the alignment term, in which the contrast of aligned parts weighs 1 and overlap of contexts
    `context`. aligned: width of the aligned part of a latent vector, by default half of it.
    """

    name: Literal["fedepa"]
    weights: LearntWeights | Annotated[float, Field(ge=0.0, le=1.0)] = LearntWeights()
    alignment: Weight = 0.5
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    independence: Independence = Independence()
    context: Weight = 1.0
    aligned: Count | None = None
    fusion: Literal["attention", "mean"] = "attention"

    @model_validator(mode="after")
    def _both_parts_have_room(self) -> FedepaMethod:
        if self.aligned_width >= self.slices.total:
            raise ValueError(f"aligned: {self.aligned_width} leaves nothing of {self.slices.total} to the other part")
        return self

    @property
    def only_averages(self) -> bool:
        return self.weights == 1.0

    @property
    def aligned_width(self) -> int:
        """Positions of a latent vector that belong to its aligned part; the others are context."""
        return self.slices.total // 2 if self.aligned is None else self.aligned
