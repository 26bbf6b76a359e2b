"""The methods that PARSE is compared with, and the list of all methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Weight
from parse_mpi.job.dmml import DmmlKdMethod
from parse_mpi.job.fedepa import FedepaMethod
from parse_mpi.job.harmony import HarmonyMethod
from parse_mpi.job.method import Learner, LocalMethod, ParseMethod, Scope, Sharing

# What belongs to the heads of slices, and has no meaning for a single head.
OF_SLICES = ("synergy_head", "synergy_rows", "pool", "ensemble", "sharing", "ensemble_weight", "head_weight")

# Among whom each method averages encoders, and heads.
POLICIES: Mapping[str, tuple[Scope, Scope]] = {
    "dsgd-task": ("set", "set"),
    "dsgd-modality": ("holders", "set"),
    "dsgd-hybrid": ("holders", "holders"),
    "centralised": ("holders", "holders"),
}


class DsgdMethod(Learner):
    """DSGD on whole models: who averages what is all in which these methods differ (method.md 2).

    heads: one head on the fused latent vector (label), or PARSE's network and heads without its alignment term, which
    is the same capacity (slices). label_head: of the former. sharing: of the latter, where it is to be other than the
    method's own.
    """

    name: Literal["dsgd-task", "dsgd-modality", "dsgd-hybrid"]
    heads: Literal["label", "slices"] = "label"
    label_head: Literal["linear", "mlp"] = "linear"
    fusion: Literal["mean", "concat", "attention"] = "mean"
    synergy_head: Literal["mlp", "linear"] = "mlp"
    synergy_rows: Literal["multimodal", "all"] = "all"
    pool: Literal["mean", "each"] = "mean"
    ensemble: Literal["types", "heads"] = "types"
    sharing: Sharing | None = None
    ensemble_weight: Weight = 1.0
    head_weight: Weight = 1.0

    @model_validator(mode="before")
    @classmethod
    def _sharing_is_the_methods_own_but_for_what_is_given(cls, value: Any) -> Any:
        given = value.get("sharing") if isinstance(value, dict) else None
        if not isinstance(given, dict) or value.get("name") not in POLICIES:
            return value
        encoder, head = POLICIES[value["name"]]
        return {**value, "sharing": {"encoder": encoder, "unique_head": head, "redundant_head": head, **given}}

    @model_validator(mode="after")
    def _keys_belong_to_their_heads(self) -> DsgdMethod:
        foreign = OF_SLICES if self.heads == "label" else ("label_head",)
        for key in foreign:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to heads: {'slices' if self.heads == 'label' else 'label'}")
        return self


class CentralisedMethod(DsgdMethod):
    """One model for everybody, trained by the mean gradient of all: the ceiling of a comparison (method.md 2)."""

    name: Literal["centralised"]  # type: ignore[assignment]
    aggregate: Literal["exact"] = "exact"

    @property
    def orders(self) -> tuple[str, ...]:
        """With consensus every agent would add its own steps to the mean: no two models would be the same."""
        return ("adapt-then-combine",)


class MonolithicMethod(Learner):
    """One shared embedding: a stem for each modality, and one trunk and head for everybody behind them (method.md 2).

    surgery: pcgrad takes the updates of unimodal and of multimodal agents out of each other's way where they conflict.
    """

    name: Literal["monolithic"]
    surgery: Literal["none", "pcgrad"] = "none"

    @property
    def only_averages(self) -> bool:
        """Surgery adds updates that are more than averages."""
        return self.surgery == "none"

    @property
    def orders(self) -> tuple[str, ...]:
        """Surgery needs the updates before anything travels."""
        return super().orders if self.surgery == "none" else ("adapt-then-combine",)


class SheafMethod(Learner):
    """Sheaf-DMFL (arXiv 2506.22374): shared encoders, and heads of different sizes tied together (method.md 2).

    edge_width: numbers that restriction maps turn a head into, for each neighbour. coupling, map_rate: lengths of the
    steps, of heads and of maps, that close the gaps between neighbours.
    """

    name: Literal["sheaf-dmfl"]
    fusion: Literal["concat", "attention"] = "concat"
    label_head: Literal["linear", "mlp"] = "linear"
    edge_width: Annotated[int, Field(ge=1, le=4096)] = 16
    coupling: Weight = 0.1
    map_rate: Weight = 0.01

    @property
    def only_averages(self) -> bool:
        """Maps pull heads somewhere else than to a mean."""
        return False


Method = Annotated[
    ParseMethod
    | LocalMethod
    | DsgdMethod
    | CentralisedMethod
    | MonolithicMethod
    | FedepaMethod
    | HarmonyMethod
    | SheafMethod
    | DmmlKdMethod,
    Field(discriminator="name"),
]
