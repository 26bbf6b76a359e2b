"""Method: what every method has, and PARSE with what the paper leaves open about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Count, Section, Weight
from parse_mpi.job.widths import AdaptiveWidths, SliceWidths

Scope = Literal["none", "set", "holders"]


class Learner(Section):
    """What every method has.

    slices: their widths; networks without slices have a latent vector of the same total width. init: the same initial
    values on all holders of a slice, or each agent its own. aggregate: neighbours average over the topology's graphs,
    or every round gives all holders their exact mean, weighted with their training samples, as a server would.
    """

    slices: SliceWidths = SliceWidths()
    init: Literal["common", "per-agent"] = "common"
    aggregate: Literal["gossip", "exact"] = "gossip"

    @property
    def only_averages(self) -> bool:
        """Whether all that mixing does to a row is to average it, column by column."""
        return True

    @property
    def orders(self) -> tuple[str, ...]:
        """Which of train.order it fits into."""
        return ("adapt-then-combine", "consensus")

    def stages(self, rounds: int) -> dict[int, str]:
        """Rounds after which a run of so many goes on in another way, and what begins then, in words."""
        return {}


class Sharing(Section):
    """Among whom a part of the model mixes: all its holders, agents that hold the same modalities, or nobody."""

    encoder: Scope = "holders"
    unique_head: Scope = "holders"
    redundant_head: Scope = "holders"


class Network(Learner):
    """What every PARSE-like method's network shares (method.md 1.2).

    gate_sync: when gates mix: every round, every so many rounds, or never. synergy_scope: all multimodal agents share
    what belongs to synergy, or only those that hold the same modalities. synergy_rows: who holds the synergistic rows
    of an encoder's last layer.
    """

    slices: SliceWidths | AdaptiveWidths = SliceWidths()  # type: ignore[assignment]
    fusion: Literal["mean", "gated", "concat", "attention"] = "mean"
    gate_sync: Literal["every-round", "local"] | Count = "every-round"
    synergy_scope: Literal["pooled", "set"] = "pooled"
    synergy_rows: Literal["multimodal", "all"] = "multimodal"
    synergy_head: Literal["mlp", "linear"] = "mlp"
    pool: Literal["mean", "each"] = "mean"
    ensemble: Literal["types", "heads"] = "types"
    modality_weighting: Literal["uniform", "adaptive"] = "uniform"

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
    sharing: Sharing = Sharing()
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
