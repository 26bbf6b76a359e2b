"""Topology: who talks to whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parse_mpi.job.base import Section

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
