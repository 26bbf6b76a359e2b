"""Encoder: the network of one modality."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from parse_mpi.job.base import Count, Section


class Encoder(Section):
    """One encoder per modality. mlp: flatten, then Linear, LayerNorm and ReLU per entry of `hidden`."""

    kind: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (256,)
