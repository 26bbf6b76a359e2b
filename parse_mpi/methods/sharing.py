"""Who shares what with whom in an era: the slice table of a method, and the graphs that the slices mix over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from parse_mpi.eras import Era
from parse_mpi.job import Job
from parse_mpi.methods.base import ALL, MULTIMODAL, Method, SliceSpec
from parse_mpi.population import Agent
from parse_mpi.topology.slice_graph import SliceGraph, slice_graph

Groups = tuple[tuple[int, ...], ...]


def slices_and_graphs(
    job: Job, method: Method, era: Era, roster: Sequence[Agent], sizes: NDArray[np.int64]
) -> tuple[tuple[SliceSpec, ...], dict[str, SliceGraph]]:
    """The slice table of an era, and one graph for all slices that mix among the same agents.

    A graph has the plainest of the names that its slices give it. Where a modality is cut, its slices stay put.
    roster: the agents of all eras. sizes: int64 [A], training samples by agent, which weigh where means are exact.
    """
    table = [
        replace(spec, groups=()) if spec.modality in era.cut_modalities else spec
        for spec in method.at(era.start).slices(era.agents, roster)
    ]
    by_groups: dict[Groups, list[str]] = {}
    clusters: dict[Groups, int] = {}
    for spec in table:
        if spec.groups:
            by_groups.setdefault(spec.groups, []).append(spec.graph)
            clusters[spec.groups] = max(spec.clusters, clusters.get(spec.groups, 1))
        if spec.coupling:
            by_groups.setdefault((spec.coupling.among,), []).append(spec.coupling.graph)
    names = {groups: min(found, key=_plainness) for groups, found in by_groups.items()}
    weights = sizes if job.method.aggregate == "exact" else None
    graphs = {
        name: slice_graph(
            name, groups, job.topology, job.seed, len(era.agents), era.cut_links, weights, clusters.get(groups, 1)
        )
        for groups, name in names.items()
    }
    return tuple(_named(spec, names) for spec in table), graphs


def _named(spec: SliceSpec, names: Mapping[Groups, str]) -> SliceSpec:
    """The same slice with the names that its graphs have."""
    coupling = spec.coupling and replace(spec.coupling, graph=names[(spec.coupling.among,)])
    return replace(spec, graph=names.get(spec.groups, ""), coupling=coupling)


def _plainness(name: str) -> tuple[bool, bool, str]:
    return name != ALL, name != MULTIMODAL, name
