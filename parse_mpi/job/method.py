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

    @property
    def unique_redundant(self) -> int:
        """Values that the part of an encoder's last layer gives which every holder has."""
        return self.unique + self.redundant

    @property
    def comparable(self) -> bool:
        """Whether slices can be compared with each other as they are."""
        return self.unique == self.redundant == self.synergistic

    @property
    def widest(self) -> int:
        """The largest of the three."""
        return max(self.unique, self.redundant, self.synergistic)


class WidthAdaptation(Section):
    """How widths follow what slices tell about the label (method.md 1.2).

    penalty: what every slice is given beside what it tells. rate: length of a local step. start: rounds during which
    widths stay equal. every: rounds between two hardenings, which move boundaries to whole positions.
    """

    penalty: Annotated[float, Field(gt=0.0, le=1e3)] = 0.1
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    start: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    every: Count = 50


class AdaptiveWidths(Section):
    """`total` latent positions a modality, which its holders divide among the three slices while they learn.

    Layers are as wide as a slice could become; masks say which positions are whose.
    """

    total: Annotated[int, Field(ge=3, le=1_000_000)]
    adapt: WidthAdaptation = WidthAdaptation()

    @property
    def unique(self) -> int:
        return self.total

    @property
    def redundant(self) -> int:
        return self.total

    @property
    def synergistic(self) -> int:
        return self.total

    @property
    def unique_redundant(self) -> int:
        """Unique and redundant positions are values of one layer."""
        return self.total

    @property
    def comparable(self) -> bool:
        """Slices have no position in common, so that their cosines are 0 as they are."""
        return False

    @property
    def widest(self) -> int:
        return self.total


class Network(Section):
    """What every PARSE-like method's network shares (method.md 1.2).

    gate_sync: when gates mix: every round, every so many rounds, or never. synergy_scope: all multimodal agents share
    what belongs to synergy, or only those that hold the same modalities. synergy_rows: who holds the synergistic rows
    of an encoder's last layer. init: the same initial values on all holders of a slice, or each agent its own.
    """

    slices: SliceWidths | AdaptiveWidths = SliceWidths()
    fusion: Literal["mean", "gated", "concat", "attention"] = "mean"
    gate_sync: Literal["every-round", "local"] | Count = "every-round"
    synergy_scope: Literal["pooled", "set"] = "pooled"
    synergy_rows: Literal["multimodal", "all"] = "multimodal"
    synergy_head: Literal["mlp", "linear"] = "mlp"
    pool: Literal["mean", "each"] = "mean"
    ensemble: Literal["types", "heads"] = "types"
    modality_weighting: Literal["uniform", "adaptive"] = "uniform"
    init: Literal["common", "per-agent"] = "common"

    @property
    def projectors(self) -> bool:
        """Whether slices of unequal widths are compared with each other, which needs a common width."""
        return False

    @model_validator(mode="after")
    def _gate_sync_needs_gates(self) -> Network:
        if self.fusion != "gated" and self.gate_sync != "every-round":
            raise ValueError("gate_sync belongs to fusion: gated")
        return self


class ConstantBeta(Section):
    """The weight of the alignment term stays as it is."""

    kind: Literal["constant"]


class WarmUpBeta(Section):
    """It grows linearly from 0 and is whole after `rounds` rounds."""

    kind: Literal["warm-up"]
    rounds: Count = 50


class AdaptiveBeta(Section):
    """Every agent balances the gradients of its two losses (method.md 1.3).

    The weight follows |grad L_cls| / |grad L_con| over the encoders, measured every `every` rounds and averaged with
    `decay` for what was before; it stays within a factor of `limit`.
    """

    kind: Literal["adaptive"]
    every: Count = 10
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    limit: Annotated[float, Field(gt=1.0, le=1e3)] = 10.0


BetaSchedule = Annotated[ConstantBeta | WarmUpBeta | AdaptiveBeta, Field(discriminator="kind")]


class ParseMethod(Network):
    """PARSE (arXiv 2601.10012): slices, the contrastive term, and which of them travels where."""

    name: Literal["parse"]
    beta: Weight = 0.5
    beta_scale: Literal["none", "holders"] = "none"
    beta_schedule: BetaSchedule = ConstantBeta(kind="constant")
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    ensemble_weight: Weight = 1.0
    head_weight: Weight = 1.0
    hard_negatives: Literal["cosine", "squared", "none"] = "cosine"
    mask_same_label: bool = False

    @property
    def projectors(self) -> bool:
        """Hard negatives compare slices with each other."""
        return self.hard_negatives != "none" and not self.slices.comparable


class LocalMethod(ParseMethod):
    """The same network and loss as parse, and no exchange at all: the floor of every comparison."""

    name: Literal["local"]  # type: ignore[assignment]


Method = Annotated[ParseMethod | LocalMethod, Field(discriminator="name")]
