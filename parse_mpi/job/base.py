"""What all sections of a job share: strictness and limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Limits are far beyond what is useful, and low enough that nothing overflows: gradients are guarded at 1e18, so with
# lr <= 1e3 and momentum <= 0.999 no float32 row can leave its range (3e38) in one step.
Positive = Annotated[float, Field(gt=0.0, le=1e3)]
Weight = Annotated[float, Field(ge=0.0, le=1e3)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A mapping of the job file: unknown keys are errors and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
