"""Training, evaluation, storage and exchange."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from parse_mpi.job.base import Count, Positive, Section


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
