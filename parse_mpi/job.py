"""The schema of a job file: what may stand in it, with defaults and limits. Reading one is jobfile.py's.

Every field's name is the key in the YAML file and the attribute in HDF5. What the paper leaves open is a key
here, with a default that docs/method.md, section 8, lists and explains.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from parse_mpi.errors import counted

# Limits are far beyond what is useful, and low enough that nothing overflows: gradients are guarded at 1e30, so with
# lr <= 1e3 and momentum <= 0.999 no float32 row can leave its range (3e38) in one step.
Positive = Annotated[float, Field(gt=0.0, le=1e3)]
Weight = Annotated[float, Field(ge=0.0, le=1e3)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Section(BaseModel):
    """A mapping of the job file: unknown keys are errors and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# -- data ------------------------------------------------------------------------------------------------------------


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


# -- agents, topology ------------------------------------------------------------------------------------------------


class AgentKind(Section):
    """`count` agents that hold `modalities`; ids follow the order of the list."""

    modalities: Annotated[tuple[str, ...], Field(min_length=1)]
    count: Count

    @field_validator("modalities")
    @classmethod
    def _no_modality_twice(cls, modalities: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modalities)) != len(modalities):
            raise ValueError("a modality is listed twice")
        return modalities


GRAPH_KINDS = ("ring", "erdos-renyi", "complete", "random-gossip")


class Topology(Section):
    """Who talks to whom. `scope` says how the graph of a slice's holders is made (method.md 1.5).

    overlay: a graph of this kind among the holders. induced: one graph among all agents, cut down to the holders.
    """

    kind: Literal["ring", "erdos-renyi", "complete", "random-gossip"]
    scope: Literal["overlay", "induced"] = "overlay"
    probability: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    base: Literal["ring", "erdos-renyi", "complete"] = "complete"
    allow_disconnected: bool = False

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Topology:
        draws_edges = "erdos-renyi" in (self.kind, self.base if self.kind == "random-gossip" else "")
        if draws_edges and self.probability is None:
            raise ValueError("erdos-renyi needs probability (0.3 is usually connected for 10 agents or more)")
        if not draws_edges and self.probability is not None:
            raise ValueError("probability belongs to erdos-renyi")
        if self.kind != "random-gossip" and self.base != "complete":
            raise ValueError("base belongs to random-gossip")
        return self


# -- method ----------------------------------------------------------------------------------------------------------


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


class Encoder(Section):
    """One encoder per modality. mlp: flatten, then Linear, LayerNorm and ReLU per entry of `hidden`."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256,)


# -- training, evaluation, storage -----------------------------------------------------------------------------------


class Optimiser(Section):
    """sgd, with heavy-ball momentum where `momentum` is above 0 (torch.optim.SGD's convention)."""

    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0.0, le=0.999)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class Train(Section):
    rounds: Count = 300
    local_steps: Count = 1
    batch_size: Count = 32
    order: Literal["adapt-then-combine"] = "adapt-then-combine"
    optimiser: Optimiser = Optimiser()


class Evaluate(Section):
    every: Count = 20


class Checkpoint(Section):
    every: Count = 50
    keep: Annotated[int, Field(ge=2, le=1_000_000, description="the newest may be the one that a crash damaged")] = 2


class Exchange(Section):
    """via: neighbour (one neighbourhood collective per graph), p2p (Isend/Irecv), auto (p2p where it sends less)."""

    via: Literal["auto", "neighbour", "p2p"] = "auto"


def _exchange_shorthand(value: object) -> object:
    return {"via": value} if isinstance(value, str) else value


class Job(Section):
    """A whole job file, resolved: every default filled in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    agents: Annotated[tuple[AgentKind, ...], Field(min_length=1)]
    topology: Topology
    method: Method
    encoder: Encoder = Encoder()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    exchange: Annotated[Exchange, BeforeValidator(_exchange_shorthand)] = Exchange()
    mode: Literal["fast", "exact"] = "fast"
    engine: Literal["auto", "loop", "stacked"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("engine")
    @classmethod
    def _exact_needs_the_loop(cls, engine: str, others: ValidationInfo) -> str:
        if others.data.get("mode") == "exact" and engine == "stacked":
            raise ValueError(
                "mode: exact needs engine: loop; the last bits of stacked agents depend on who else is stacked"
            )
        return engine
