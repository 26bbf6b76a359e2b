"""Topology: who talks to whom."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from parse_mpi.job.base import Section

UndirectedKind = Literal[
    "ring",
    "chordal-ring",
    "torus",
    "star",
    "complete",
    "erdos-renyi",
    "random-regular",
    "small-world",
    "edge-list",
    "static-exponential",
]
Kind = Literal[UndirectedKind, "one-peer-exponential", "base-k", "random-gossip", "matcha"]
GRAPH_KINDS: tuple[str, ...] = get_args(Kind)
DRAW_FROM_A_BASE = ("random-gossip", "matcha")

# Which keys a kind (or the base that it draws from) needs; no other kind knows them.
KEYS_OF_KIND = {
    "erdos-renyi": ("probability",),
    "random-regular": ("degree",),
    "small-world": ("degree", "probability"),
    "edge-list": ("edges",),
    "static-exponential": ("directed",),
    "base-k": ("k",),
    "matcha": ("budget",),
}
WHAT_TO_WRITE = {
    "probability": "0.3 is usually connected for 10 agents or more",
    "degree": "links of an agent, for example 4",
    "edges": "or file: a text file with two agent ids a line",
    "directed": "true: rows go to i + 2^t and come from i - 2^t; false: both ways, with Metropolis weights",
    "k": "the most neighbours in a round, for example 1",
    "budget": "the share of the base graph's matchings that are active in a round, for example 0.5",
}
WHY_NOT_INDUCED = (
    "its links are made for the agents that it was drawn among; cut down to a slice's holders, some would get more "
    "than they give and the mean would drift: use scope: overlay"
)
Id = Annotated[int, Field(ge=0)]


class Topology(Section):
    """Who talks to whom. `scope` says how the graph of a slice's holders is made (method.md 1.5).

    overlay: a graph of this kind among the holders. induced: one graph among all agents, cut down to the holders.
    lazy: the mean of W and the identity in the place of W.
    """

    kind: Kind
    scope: Literal["overlay", "induced"] = "overlay"
    probability: Annotated[float, Field(ge=1e-12, le=1.0)] | None = None
    degree: Annotated[int, Field(ge=2, le=10_000)] | None = None
    edges: Annotated[tuple[tuple[Id, Id], ...], Field(min_length=1, max_length=20_000)] | None = None
    directed: bool | None = None
    k: Annotated[int, Field(ge=1, le=100)] | None = None
    base: UndirectedKind = "complete"
    budget: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    lazy: bool = False
    allow_disconnected: bool = False

    @property
    def needs_all_links(self) -> bool:
        """Whether weights are fixed: with one of its links gone an agent would give away more than it gets."""
        return bool(self.directed) or self.kind in ("one-peer-exponential", "base-k")

    @field_validator("edges")
    @classmethod
    def _in_order(cls, edges: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
        """Each edge once, lower id first, ascending: the same edges make the same job, however they are listed."""
        if edges is None:
            return None
        for i, j in edges:
            if i == j:
                raise ValueError(f"an edge joins agent {i} to itself")
        return tuple(sorted({(min(edge), max(edge)) for edge in edges}))

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Topology:
        kinds = {self.kind, self.base} if self.kind in DRAW_FROM_A_BASE else {self.kind}
        if self.base != "complete" and self.kind not in DRAW_FROM_A_BASE:
            raise ValueError(f"base belongs to {_listed(DRAW_FROM_A_BASE)}")
        for key, example in WHAT_TO_WRITE.items():
            owners = [kind for kind, keys in KEYS_OF_KIND.items() if key in keys]
            needing, given = kinds.intersection(owners), getattr(self, key) is not None
            if needing and not given:
                raise ValueError(f"{_listed(sorted(needing))} needs {key} ({example})")
            if given and not needing:
                raise ValueError(f"{key} belongs to {_listed(owners)}")
        return self

    @model_validator(mode="after")
    def _values_fit_kind(self) -> Topology:
        kinds = (self.kind, self.base)
        if self.directed and self.kind != "static-exponential":
            raise ValueError("a base is undirected: say directed: false")
        if "small-world" in kinds and self.degree is not None and self.degree % 2:
            raise ValueError(f"small-world starts from degree / 2 neighbours on each side: {self.degree} is odd")
        if "edge-list" in kinds and self.scope == "overlay":
            raise ValueError(
                "an edge list names agents, so it can only be cut down to the holders of a slice: say scope: induced"
            )
        if self.scope == "induced" and self.needs_all_links:
            raise ValueError(f"{self.kind} can't be induced: {WHY_NOT_INDUCED}")
        return self


def parse_edges(text: str) -> list[tuple[int, int]]:
    """The edges of an edge-list file: two agent ids a line, apart by blanks or a comma; # begins a comment.

    Raises ValueError with the number of the line that says something else, and where there is no edge at all.
    """
    edges = []
    for number, line in enumerate(text.splitlines(), start=1):
        ids = line.partition("#")[0].replace(",", " ").split()
        if not ids:
            continue
        if len(ids) != 2 or not all(agent.isdecimal() and len(agent) < 10 for agent in ids):
            raise ValueError(f"line {number} says '{line.strip()[:40]}'; it must be two agent ids, for example: 0 1")
        edges.append((int(ids[0]), int(ids[1])))
    if not edges:
        raise ValueError("no line names two agents")
    return edges


def _listed(words: Iterable[str]) -> str:
    return " and ".join(words)
