"""Training, evaluation, storage and exchange."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from parse_mpi.job.base import Count, Positive, Section

SHARDS_BY_RANK = 256  # ranks up to which each writes a file of its own
Decay = Annotated[float, Field(ge=0.0, le=1.0)]
Forgetting = Annotated[float, Field(ge=0.0, le=0.999)]
AdamBeta = Annotated[float, Field(ge=0.0, le=0.9999)]


def _as_tuple(value: object) -> object:
    """A list of JSON, which a strict tuple takes only where no validator stands before it; one stands before these."""
    return tuple(value) if isinstance(value, list) else value


class _Optimiser(Section):
    """What every optimiser has; class attributes say which rounds it fits into (docs/method.md, section 1.6).

    copies: matrices of the size of the rows that neighbours average, the rows themselves included.
    needs_everything: what it remembers is right only as long as all agents take part and whole rows travel.
    """

    orders: ClassVar[tuple[str, ...]] = ("adapt-then-combine", "consensus")
    one_local_step: ClassVar[bool] = False
    copies: ClassVar[int] = 1
    needs_everything: ClassVar[bool] = False

    lr: Positive = 0.05
    weight_decay: Decay = 0.0


class SgdOptimiser(_Optimiser):
    """torch.optim.SGD: with heavy-ball momentum where `momentum` is above 0, or Nesterov's."""

    name: Literal["sgd"] = "sgd"
    momentum: Forgetting = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SgdOptimiser:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs momentum above 0")
        return self


class AdamWOptimiser(_Optimiser):
    """torch.optim.AdamW, with its defaults."""

    name: Literal["adamw"]
    lr: Positive = 1e-3
    weight_decay: Decay = 0.01
    betas: Annotated[tuple[AdamBeta, AdamBeta], BeforeValidator(_as_tuple)] = (0.9, 0.999)
    eps: Annotated[float, Field(ge=1e-12, le=1.0)] = 1e-8


class QuasiGlobalOptimiser(_Optimiser):
    """QG-DSGDm: momentum follows the change of the mixed rows instead of the agent's own gradient."""

    orders: ClassVar[tuple[str, ...]] = ("adapt-then-combine",)

    name: Literal["qg-dsgdm"]
    lr: Annotated[float, Field(ge=1e-9, le=1e3, description="momentum is a change of rows divided by lr")] = 0.05
    beta: Forgetting = 0.9
    mu: Forgetting = 0.9


class GradientTrackingOptimiser(_Optimiser):
    """Gradient tracking: neighbours average an estimate of the mean gradient too, at twice the traffic."""

    orders: ClassVar[tuple[str, ...]] = ("consensus",)
    one_local_step: ClassVar[bool] = True
    copies: ClassVar[int] = 2
    needs_everything: ClassVar[bool] = True

    name: Literal["gradient-tracking"]


class D2Optimiser(_Optimiser):
    """D^2: corrects each step by the one before it; every W must be the same in all rounds, and symmetric."""

    orders: ClassVar[tuple[str, ...]] = ("adapt-then-combine",)
    one_local_step: ClassVar[bool] = True
    needs_everything: ClassVar[bool] = True

    name: Literal["d2"]


Optimiser = Annotated[
    SgdOptimiser | AdamWOptimiser | QuasiGlobalOptimiser | GradientTrackingOptimiser | D2Optimiser,
    Field(discriminator="name"),
]


def _sgd_unless_named(value: object) -> object:
    return {"name": "sgd", **value} if isinstance(value, dict) else value


class Train(Section):
    """order adapt-then-combine: learn, then mix. consensus: rows as they were travel while agents learn.

    on_nonfinite: a loss or gradient that is not finite stops the run, or cuts that agent off from the next round on.
    """

    rounds: Count = 300
    local_steps: Count = 1
    batch_size: Count = 32
    order: Literal["adapt-then-combine", "consensus"] = "adapt-then-combine"
    optimiser: Annotated[Optimiser, BeforeValidator(_sgd_unless_named)] = SgdOptimiser()
    on_nonfinite: Literal["stop", "isolate"] = "stop"

    @field_validator("optimiser")
    @classmethod
    def _fits_the_round(cls, optimiser: Optimiser, others: ValidationInfo) -> Optimiser:
        needs = []
        if others.data.get("order", optimiser.orders[0]) not in optimiser.orders:
            needs.append(f"train.order: {optimiser.orders[0]}")
        if optimiser.one_local_step and others.data.get("local_steps", 1) != 1:
            needs.append("train.local_steps: 1")
        if needs:
            raise ValueError(f"{optimiser.name} needs {' and '.join(needs)}; set that, or choose another optimiser")
        return optimiser

    @field_validator("on_nonfinite")
    @classmethod
    def _some_optimisers_can_lose_nobody(cls, choice: str, others: ValidationInfo) -> str:
        optimiser = others.data.get("optimiser")
        if choice == "isolate" and optimiser is not None and optimiser.needs_everything:
            raise ValueError(
                f"{optimiser.name} needs the same agents in all rounds; say stop, or choose another optimiser"
            )
        return choice


class Evaluate(Section):
    """test: false leaves the test split out of everything, so that choices made by a run can't have seen it.

    predictions: whether the class that every agent predicts for every sample is kept at the end of the run.
    """

    every: Count = 20
    test: bool = True
    predictions: bool = True

    @property
    def told(self) -> str:
        """The split whose accuracy a person is told while the run goes on."""
        return "test" if self.test else "validation"


class Checkpoint(Section):
    """shards: a file per rank or per node; auto: per rank up to 256 ranks; single: one file, by parallel HDF5."""

    every: Count = 50
    keep: Annotated[int, Field(ge=2, le=1_000_000, description="the newest may be the one that a crash damaged")] = 2
    shards: Literal["auto", "rank", "node", "single"] = "auto"

    def by_node(self, ranks: int) -> bool:
        """Whether the ranks of a node write one shard together: many files at once are hard on a metadata server."""
        return self.shards == "node" or (self.shards == "auto" and ranks > SHARDS_BY_RANK)


class Exchange(Section):
    """via: neighbour (one neighbourhood collective per graph), p2p (Isend/Irecv), auto (p2p where it sends less).

    budget_bytes_per_link: no link between two agents carries more in a round; columns of slices take turns, equally
    often (rotation) or by how far holders of the slice differed `reweigh_every` rounds ago or less (priority).
    progress: what keeps rows moving while agents learn (train.order: consensus): a thread, polling between agents, or
    none; auto measures them at the start.
    """

    via: Literal["auto", "neighbour", "p2p"] = "auto"
    progress: Literal["auto", "thread", "poll", "none"] = "auto"
    budget_bytes_per_link: Annotated[int, Field(ge=1)] | None = None
    turns: Literal["rotation", "priority"] = "rotation"
    reweigh_every: Count = 20
