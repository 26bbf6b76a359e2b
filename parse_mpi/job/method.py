"""Method: what is learnt, and what the paper leaves open about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Count, Section, Weight


class SliceWidths(Section):
    """Widths d_u, d_r, d_s of the latent slices; the encoder's output has their sum."""

    unique: Count = 64
    redundant: Count = 64
    synergistic: Count = 64


class Network(Section):
    """What every PARSE-like method's network shares (method.md 1.2)."""

    slices: SliceWidths = SliceWidths()
    fusion: Literal["mean"] = "mean"
    synergy_head: Literal["mlp", "linear"] = "mlp"
    pool: Literal["mean", "each"] = "mean"
    ensemble: Literal["types", "heads"] = "types"


class ParseMethod(Network):
    """PARSE (arXiv 2601.10012): slices, the contrastive term, and which of them travels where."""

    name: Literal["parse"]
    beta: Weight = 0.5
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    ensemble_weight: Weight = 1.0
    head_weight: Weight = 1.0
    hard_negatives: Literal["cosine", "squared", "none"] = "cosine"
    mask_same_label: bool = False
    beta_scale: Literal["none", "holders"] = "none"

    @model_validator(mode="after")
    def _widths_allow_cosine(self) -> ParseMethod:
        widths = self.slices
        if self.hard_negatives != "none" and not widths.unique == widths.redundant == widths.synergistic:
            raise ValueError(
                "hard negatives compare slices with each other, so the three widths must be equal; "
                "set hard_negatives: none for unequal widths"
            )
        return self


class LocalMethod(ParseMethod):
    """The same network and loss as parse, and no exchange at all: the floor of every comparison."""

    name: Literal["local"]  # type: ignore[assignment]


Method = Annotated[ParseMethod | LocalMethod, Field(discriminator="name")]
