"""Small valid jobs drawn across all that a job file can combine; a seed names a sample of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from small_jobs import write_dataset

from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import JobError
from parse_mpi.job import GRAPH_KINDS
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan

Section = dict[str, Any]

DATA_FILE = "abc.h5"
OWN_ENCODERS = '''"""Encoders of their own for drawn jobs."""

import math

from torch import nn


class Flat(nn.Sequential):
    def __init__(self, sample_shape, width):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.Tanh())
        self.width = width


def make(sample_shape, width=5):
    return Flat(sample_shape, width)
'''

# Sources with the modalities of each.
SOURCES: list[tuple[Any, list[str]]] = [
    ("digits", ["top", "bottom"]),
    ({"digits": {"cut": "quadrants"}}, ["top_left", "top_right", "bottom_left", "bottom_right"]),
    ({"pid": {"samples": 300, "features": 6}}, ["first", "second"]),
    ({"hdf5": DATA_FILE}, ["a", "b", "c"]),
]
KEYS_OF_KIND: dict[str, Section] = {
    "erdos-renyi": {"probability": 0.6},
    "random-regular": {"degree": 3},
    "small-world": {"degree": 2, "probability": 0.4},
    "base-k": {"k": 2},
    "matcha": {"budget": 0.6},
}
BASES = [kind for kind in GRAPH_KINDS[: GRAPH_KINDS.index("one-peer-exponential")] if kind != "edge-list"]
OPTIMISERS: list[Section] = [
    {"name": "sgd", "momentum": 0.0},
    {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.8, "nesterov": True},
    {"name": "adamw", "lr": 0.005},
    {"name": "qg-dsgdm"},
    {"name": "gradient-tracking"},
    {"name": "d2"},
]
BETA_SCHEDULES: list[Section] = [
    {"kind": "constant"},
    {"kind": "warm-up", "rounds": 3},
    {"kind": "adaptive", "every": 1, "decay": 0.5},
    {"kind": "adaptive", "every": 3},
]


def often(strategy: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """None, or one of the strategy, equally often."""
    return st.booleans().flatmap(lambda there: strategy if there else st.none())


def present(section: Section) -> Section:
    """The keys whose values are not None."""
    return {key: value for key, value in section.items() if value is not None}


@st.composite
def encoders(draw: DrawFn, source: Any, modality: str) -> Section:
    """A tiny encoder that takes the samples of a modality."""
    kinds: list[Section] = [
        {"kind": "mlp", "hidden": [draw(st.integers(4, 7))]},
        {"kind": "own", "factory": "drawn_encoders.make", "options": {"width": draw(st.integers(4, 7))}},
    ]
    stages = {"channels": [draw(st.sampled_from([2, 4]))], "kernel": 3, "cells": 2, "width": 6}
    if "digits" in source:
        kinds.append({"kind": "conv2d"} | stages)
    if modality == "b":
        kinds.append({"kind": "conv1d"} | stages)
    return draw(st.sampled_from(kinds))


@st.composite
def agent_kinds(draw: DrawFn, source: Any, modalities: list[str]) -> list[Section]:
    """5 to 8 agents of 2 to 4 entries, the first of which is multimodal; some have encoders of their own."""
    several = st.lists(st.sampled_from(modalities), min_size=2, unique=True)
    some = st.lists(st.sampled_from(modalities), min_size=1, unique=True)
    counts = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4).filter(lambda drawn: 5 <= sum(drawn) <= 8))
    kinds = []
    for place, count in enumerate(counts):
        held = draw(some if place else several)
        own = {held[0]: draw(encoders(source, held[0]))} if draw(st.booleans()) else None
        kinds.append(present({"modalities": held, "count": count, "encoders": own}))
    return kinds


@st.composite
def topologies(draw: DrawFn, agent_count: int) -> Section:
    kind = draw(st.sampled_from(GRAPH_KINDS))
    base = draw(st.sampled_from(BASES)) if kind in ("random-gossip", "matcha") else None
    keys = KEYS_OF_KIND.get(base or "", {}) | KEYS_OF_KIND.get(kind, {})
    directed = None
    if "static-exponential" in (kind, base):
        directed = base is None and draw(st.booleans())
    edges = None
    if kind == "edge-list":
        pairs = [[i, j] for j in range(agent_count) for i in range(j)]
        edges = draw(st.lists(st.sampled_from(pairs), min_size=agent_count, unique_by=tuple))
    may_be_induced = not directed and kind not in ("one-peer-exponential", "base-k")
    induced = edges is not None or (may_be_induced and draw(st.booleans()))
    return keys | present(
        {
            "kind": kind,
            "base": base,
            "directed": directed,
            "edges": edges,
            "scope": "induced" if induced else "overlay",
            "lazy": draw(st.booleans()),
            "allow_disconnected": True,
        }
    )


@st.composite
def partitions(draw: DrawFn, source: Any) -> Section:
    kinds: list[Section] = [
        {"kind": "iid"},
        {"kind": "dirichlet", "alpha": 0.3},
        {"kind": "label-shard", "shards": 2},
    ]
    return draw(st.sampled_from(kinds + [{"kind": "by-group"}] * ("hdf5" in source)))


@st.composite
def data_sections(draw: DrawFn, source: Any, agents: list[Section]) -> Section:
    held = sorted({modality for kind in agents for modality in kind["modalities"]})
    poor = {
        "agents": {"fraction": 0.5},
        "modality": draw(st.sampled_from(held)),
        "noise": draw(st.sampled_from([0.0, 0.7])),
        "missing": draw(st.sampled_from([0.2, 0.9])),
    }
    stream = {
        "start": draw(st.sampled_from([0.05, 0.4])),
        "rounds": draw(st.integers(1, 8)),
        "order": draw(st.sampled_from(["random", "by-class"])),
    }
    return {
        "source": source,
        "partition": draw(partitions(source)),
        "labelled_fraction": draw(st.sampled_from([1.0, 1.0, 0.3])),
        "poor": draw(st.sampled_from([[], [poor]])),
    } | present({"stream": draw(often(st.just(stream)))})


@st.composite
def methods(draw: DrawFn) -> Section:
    width = st.integers(2, 6)
    fixed = st.fixed_dictionaries({"unique": width, "redundant": width, "synergistic": width})
    adapt = st.fixed_dictionaries({"every": st.integers(1, 3), "start": st.integers(0, 2)})
    adaptive = st.fixed_dictionaries({"total": st.integers(6, 9), "adapt": adapt})
    equal = width.map(lambda w: {"unique": w, "redundant": w, "synergistic": w})
    fusion = draw(st.sampled_from(["mean", "gated", "gated", "concat", "attention"]))
    gate_sync = draw(st.sampled_from(["every-round", "local", 2])) if fusion == "gated" else None
    return present(
        {
            "name": draw(st.sampled_from(["parse"] * 9 + ["local"])),
            "slices": draw(st.one_of(equal, fixed, adaptive)),
            "fusion": fusion,
            "gate_sync": gate_sync,
            "synergy_scope": "set" if fusion == "concat" else draw(st.sampled_from(["pooled", "set"])),
            "synergy_rows": draw(st.sampled_from(["multimodal", "all"])),
            "synergy_head": draw(st.sampled_from(["mlp", "linear"])),
            "pool": draw(st.sampled_from(["mean", "each"])),
            "ensemble": draw(st.sampled_from(["types", "heads"])),
            "modality_weighting": draw(st.sampled_from(["uniform", "adaptive"])),
            "init": draw(st.sampled_from(["common", "per-agent"])),
            "beta_scale": draw(st.sampled_from(["none", "holders"])),
            "beta_schedule": draw(st.sampled_from(BETA_SCHEDULES)),
            "hard_negatives": draw(st.sampled_from(["cosine", "squared", "none"])),
            "mask_same_label": draw(st.booleans()),
        }
    )


@st.composite
def event_lists(
    draw: DrawFn, agents: list[Section], modalities: list[str], rounds: int, may_cut_links: bool
) -> list[Section]:
    """One to four events that make sense one after another; one agent may join late and be away until then."""
    held = dict(enumerate(set(kind["modalities"]) for kind in agents for _ in range(kind["count"])))
    late = draw(often(st.sampled_from(sorted(held))))
    events: list[Section] = []
    if late is not None:
        events.append({"kind": "join", "round": draw(st.integers(1, rounds - 1)), "agents": [late]})
    away: set[int] = set()
    cut: set[Any] = set()
    links = [(i, j) for j in held for i in range(j)]
    for when in sorted(draw(st.lists(st.integers(1, rounds - 1), min_size=1, max_size=3, unique=True))):
        possible = [("lose", i, m) for i, own in held.items() if len(own) > 1 for m in own]
        possible += [("gain", i, m) for i, own in held.items() for m in modalities if m not in own]
        possible += [("join" if i in away else "leave", i, None) for i in held if i != late]
        possible += [("heal" if m in cut else "cut", None, m) for m in modalities]
        possible += [("heal" if link in cut else "cut", link, None) for link in links if may_cut_links]
        kind = draw(st.sampled_from(sorted({kind for kind, *_ in possible})))
        _, who, modality = draw(st.sampled_from(sorted((p for p in possible if p[0] == kind), key=repr)))
        event = {"kind": kind, "round": when, "modality": modality}
        if kind in ("cut", "heal"):
            cut ^= {modality or who}
            event["links"] = who and [list(who)]
        else:
            event["agents"] = [who]
            if modality:
                held[who] ^= {modality}
            else:
                away ^= {who}
        events.append(present(event))
    return events


@st.composite
def jobs(draw: DrawFn) -> Section:
    source, modalities = draw(st.sampled_from(SOURCES))
    agents = draw(agent_kinds(source, modalities))
    rounds = draw(st.integers(4, 6))
    topology = draw(topologies(sum(kind["count"] for kind in agents)))
    method = draw(methods())
    optimiser = draw(st.sampled_from(OPTIMISERS))
    name = optimiser["name"]
    if name == "d2":
        topology["lazy"] = True
        if topology["kind"] in ("one-peer-exponential", "base-k", "random-gossip", "matcha"):
            topology = {"kind": "torus", "lazy": True}
        if topology.get("directed"):
            topology["directed"] = False
        if "gate_sync" in method:
            method["gate_sync"] = "local"
    whole = name in ("d2", "gradient-tracking")
    fixed_weights = topology.get("directed") or topology["kind"] in ("one-peer-exponential", "base-k")
    exchange = {
        "via": draw(st.sampled_from(["auto", "neighbour", "p2p"])),
        "progress": draw(st.sampled_from(["auto", "thread", "poll", "none"])),
    }
    if not whole and draw(st.booleans()):
        exchange["budget_bytes_per_link"] = draw(st.integers(300, 2000))
        exchange["turns"] = draw(st.sampled_from(["rotation", "priority"]))
        exchange["reweigh_every"] = draw(st.integers(1, 3))
        if "gate_sync" in method:
            method["gate_sync"] = draw(st.sampled_from(["every-round", "local"]))
    orders = {"gradient-tracking": ["consensus"], "d2": ["adapt-then-combine"], "qg-dsgdm": ["adapt-then-combine"]}
    events = [] if whole else draw(often(event_lists(agents, modalities, rounds, not fixed_weights))) or []
    return {
        "name": "drawn",
        "seed": draw(st.integers(0, 10_000)),
        "mode": "exact",
        "data": draw(data_sections(source, agents)),
        "agents": agents,
        "topology": topology,
        "method": method,
        "events": events,
        "encoders": {modality: draw(encoders(source, modality)) for modality in modalities},
        "train": {
            "rounds": rounds,
            "batch_size": draw(st.integers(4, 16)),
            "local_steps": 1 if whole else draw(st.integers(1, 3)),
            "order": draw(st.sampled_from(orders.get(name, ["adapt-then-combine", "consensus"]))),
            "optimiser": optimiser,
        },
        "exchange": exchange,
        "evaluate": {"every": 1},
        "checkpoint": {"every": draw(st.integers(1, 3)), "keep": 10},
        "dtype": draw(st.sampled_from(["float32", "float32", "float64"])),
    }


def draw_job(seed_value: int) -> Section:
    """The job of a seed: the second example, as the first is the simplest there is and later ones vary others."""
    drawn: list[Section] = []

    @seed(seed_value)
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(jobs())
    def collect(job: Section) -> None:
        drawn.append(job)

    collect()
    return drawn[-1]


def write_jobs(folder: Path, count: int, seed_value: int) -> list[str]:
    """Write a sample of job files 0000.yaml, 0001.yaml, ... with what they need; returns why some were refused."""
    write_dataset(folder / DATA_FILE)
    (folder / "drawn_encoders.py").write_text(OWN_ENCODERS)
    refused = []
    for number in range(count):
        path = folder / f"{number:04d}.yaml"
        path.write_text(yaml.safe_dump(draw_job(seed_value + number), sort_keys=False))
        try:
            jobfile = load_job(path)
            make_plan(jobfile, load_dataset(jobfile.job.data, jobfile.job.seed), ranks=3)
        except JobError as error:
            refused.append(str(error))
            path.unlink()
    return refused
