"""The schema of a job file: what may stand in it, with defaults and limits. Reading one is jobfile.py's.

Every field's name is the key in the YAML file and the attribute in HDF5. What the paper leaves open is a key
here, with a default that docs/method.md, section 8, lists and explains.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from parse_mpi.job.agents import AgentKind
from parse_mpi.job.base import Section
from parse_mpi.job.baselines import CentralisedMethod, DsgdMethod, Method, MonolithicMethod, SheafMethod
from parse_mpi.job.data import Data, DigitsSource, Hdf5Source, Partition, PidSource, PidSourceKey, PoorSensor, Stream
from parse_mpi.job.dmml import DmmlKdMethod
from parse_mpi.job.encoder import Conv1dEncoder, Conv2dEncoder, Encoder, EncoderByShape, MlpEncoder, OwnEncoder
from parse_mpi.job.events import Event, LinkEvent
from parse_mpi.job.fedepa import FedepaMethod, LearntWeights
from parse_mpi.job.harmony import HarmonyMethod
from parse_mpi.job.method import Learner, LocalMethod, Network, ParseMethod, Sharing
from parse_mpi.job.topology import GRAPH_KINDS, Topology
from parse_mpi.job.train import (
    AdamWOptimiser,
    Checkpoint,
    D2Optimiser,
    Evaluate,
    Exchange,
    GradientTrackingOptimiser,
    Optimiser,
    QuasiGlobalOptimiser,
    SgdOptimiser,
    Train,
)
from parse_mpi.job.widths import AdaptiveWidths, SliceWidths

__all__ = [
    "GRAPH_KINDS",
    "AdamWOptimiser",
    "AdaptiveWidths",
    "AgentKind",
    "CentralisedMethod",
    "Checkpoint",
    "Conv1dEncoder",
    "Conv2dEncoder",
    "D2Optimiser",
    "Data",
    "DigitsSource",
    "DmmlKdMethod",
    "DsgdMethod",
    "Encoder",
    "EncoderByShape",
    "Evaluate",
    "Event",
    "Exchange",
    "FedepaMethod",
    "GradientTrackingOptimiser",
    "HarmonyMethod",
    "Hdf5Source",
    "Job",
    "Learner",
    "LearntWeights",
    "LocalMethod",
    "Method",
    "MlpEncoder",
    "MonolithicMethod",
    "Network",
    "Optimiser",
    "OwnEncoder",
    "ParseMethod",
    "Partition",
    "PidSource",
    "PidSourceKey",
    "PoorSensor",
    "QuasiGlobalOptimiser",
    "SgdOptimiser",
    "Sharing",
    "SheafMethod",
    "SliceWidths",
    "Stream",
    "Topology",
    "Train",
]


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
    events: tuple[Event, ...] = ()
    encoder: Encoder = EncoderByShape()
    encoders: dict[str, Encoder] = Field(default_factory=dict)
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    exchange: Annotated[Exchange, BeforeValidator(_exchange_shorthand)] = Exchange()
    placement: Literal["share", "contiguous", "round-robin", "by-modality", "minimum-cut"] = "share"
    mode: Literal["fast", "exact"] = "fast"
    engine: Literal["auto", "loop", "stacked"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("topology")
    @classmethod
    def _edges_join_agents(cls, topology: Topology, others: ValidationInfo) -> Topology:
        if topology.edges is not None and "agents" in others.data:
            agent_count = sum(entry.count for entry in others.data["agents"])
            highest = max(max(edge) for edge in topology.edges)
            if highest >= agent_count:
                raise ValueError(f"an edge leads to agent {highest}, but the agents are 0 to {agent_count - 1}")
        return topology

    @field_validator("events")
    @classmethod
    def _an_exact_mean_needs_everybody(cls, events: tuple[Event, ...], others: ValidationInfo) -> tuple[Event, ...]:
        method = others.data.get("method")
        links = any(isinstance(event, LinkEvent) and event.links for event in events)
        if links and method is not None and method.aggregate == "exact":
            raise ValueError(
                "method.aggregate: exact knows no links that could be cut; cut a modality's graphs instead"
            )
        return events

    @field_validator("train")
    @classmethod
    def _newcomers_need_somebody_to_learn_from(cls, train: Train, others: ValidationInfo) -> Train:
        method = others.data.get("method")
        if isinstance(method, HarmonyMethod) and (late := method.too_late(others.data.get("events", ()), train.rounds)):
            raise ValueError(
                f"after round {late[0].round} somebody would {late[0].kind}, but harmony's encoders travel only up to "
                f"round {method.second_stage(train.rounds)}; let it happen earlier, or raise method.first_stage"
            )
        return train

    @field_validator("train")
    @classmethod
    def _some_optimisers_need_one_population(cls, train: Train, others: ValidationInfo) -> Train:
        if train.optimiser.needs_everything and others.data.get("events"):
            raise ValueError(f"{train.optimiser.name} needs the same agents and links in all rounds; leave events out")
        return train

    @field_validator("train")
    @classmethod
    def _some_optimisers_need_every_step(cls, train: Train, others: ValidationInfo) -> Train:
        method = others.data.get("method")
        if train.optimiser.needs_everything and isinstance(method, DmmlKdMethod) and method.balance is not None:
            raise ValueError(
                f"{train.optimiser.name} needs a step of every slice in every round, and method.balance leaves some out"
            )
        return train

    @field_validator("train")
    @classmethod
    def _some_methods_fit_into_some_rounds(cls, train: Train, others: ValidationInfo) -> Train:
        method = others.data.get("method")
        if method is None:
            return train
        if train.order not in method.orders:
            raise ValueError(f"{method.name} as it is set here needs train.order: {method.orders[0]}")
        if train.optimiser.needs_everything and not method.only_averages:
            raise ValueError(
                f"{train.optimiser.name} needs neighbours who do nothing but average rows, and {method.name} as it is "
                "set here does more; choose another optimiser"
            )
        return train

    @field_validator("exchange")
    @classmethod
    def _some_methods_need_whole_rows(cls, exchange: Exchange, others: ValidationInfo) -> Exchange:
        method = others.data.get("method")
        if exchange.budget_bytes_per_link and method is not None and not method.only_averages:
            raise ValueError(
                f"{method.name} as it is set here does more than average columns, which a budget could put off; leave "
                "budget_bytes_per_link out"
            )
        return exchange

    @field_validator("exchange")
    @classmethod
    def _some_optimisers_need_whole_rows(cls, exchange: Exchange, others: ValidationInfo) -> Exchange:
        train = others.data.get("train")
        if exchange.budget_bytes_per_link and train is not None and train.optimiser.needs_everything:
            raise ValueError(f"{train.optimiser.name} needs whole rows every round; leave budget_bytes_per_link out")
        return exchange

    @field_validator("engine")
    @classmethod
    def _exact_needs_the_loop(cls, engine: str, others: ValidationInfo) -> str:
        if others.data.get("mode") == "exact" and engine == "stacked":
            raise ValueError(
                "mode: exact needs engine: loop; the last bits of stacked agents depend on who else is stacked"
            )
        return engine
