"""What is wrong with a job that only data, graphs and ranks can show, as problems with their place in the job file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from parse_mpi.data.dataset import Dataset
from parse_mpi.eras import Era
from parse_mpi.errors import Problem, counted
from parse_mpi.jobfile import JobFile
from parse_mpi.methods.base import SliceSpec
from parse_mpi.topology.slice_graph import SliceGraph

MODALITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
LARGEST_MAPS = 1 << 26  # bytes of restriction maps of one agent: they are kept, copied into checkpoints, and written
D2_LOWEST = -1 / 3 + 1e-6  # rings of an even number of agents have -1/3, give or take rounding


def agent_problems(jobfile: JobFile, dataset: Dataset) -> list[Problem]:
    known = list(dataset.modalities)
    problems = [
        Problem(jobfile.where("data", "source"), f"modality name {m!r} can't name an HDF5 group and a parameter",
                "use letters, digits, _ and -, beginning with a letter")
        for m in known
        if not MODALITY_NAME.fullmatch(m)
    ]  # fmt: skip
    for k, entry in enumerate(jobfile.job.agents):
        for m in entry.modalities:
            if m not in known:
                close = difflib.get_close_matches(m, known, 1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                problems.append(
                    Problem(
                        jobfile.where("agents", k, "modalities"),
                        f"no data for modality {m!r}",
                        f"{hint}{dataset.name} holds {', '.join(known)}",
                    )
                )
    return problems


def graph_problems(jobfile: JobFile, era: Era, graphs: Mapping[str, SliceGraph]) -> list[Problem]:
    if jobfile.job.topology.allow_disconnected or era.cut_links:  # who cuts a link knows that a graph may fall apart
        return []
    hint = (
        "agents in different components never learn from each other: use scope: overlay or a denser graph, or say "
        "allow_disconnected: true"
    )
    return [Problem(jobfile.where("topology"), what, hint) for what in broken_graphs(graphs.values(), era.start)]


def broken_graphs(graphs: Iterable[SliceGraph], start: int) -> list[str]:
    """The graphs of an era that fall apart, in words; start: of the era."""
    when = f" after round {start}" if start else ""
    found = []
    for graph in graphs:
        for group, components in graph.disconnected_groups():
            listed = "; ".join(_brief(component) for component in components[:4])
            more = f"; and {len(components) - 4} more" if len(components) > 4 else ""
            count = f"falls apart{when} into {len(components)} components"
            found.append(f"graph {graph.name!r} of {len(group)} agents {count}: {listed}{more}")
    return found


def optimiser_problems(
    jobfile: JobFile, slices: Sequence[SliceSpec], graphs: Mapping[str, SliceGraph]
) -> list[Problem]:
    """D^2 is made for one symmetric W, and stable where all its eigenvalues are above -1/3."""
    if jobfile.job.train.optimiser.name != "d2":
        return []
    if not all(graph.symmetric for graph in graphs.values()):
        exact = jobfile.job.method.aggregate == "exact"
        source = "method.aggregate: exact" if exact else f"topology.kind {jobfile.job.topology.kind}"
        where = jobfile.where("train", "optimiser", "name")
        what = f"d2 needs one symmetric mixing matrix for all rounds; {source} has none"
        return [Problem(where, what, "choose a kind of static undirected graph, or gradient-tracking")]
    if rare := [spec.name for spec in slices if spec.every > 1]:
        where = jobfile.where("train", "optimiser", "name")
        return [
            Problem(where, f"d2 mixes in every round, {', '.join(rare)} does not", "say method.gate_sync: every-round")
        ]
    lowest = {graph.name: graph.smallest_eigenvalue() for graph in graphs.values()}
    return [
        Problem(
            jobfile.where("topology"),
            f"d2 diverges on graph {name!r}: the smallest eigenvalue of its W is {value:.3f}, it must be above -1/3",
            "say topology.lazy: true, which mixes with (I + W) / 2",
        )
        for name, value in lowest.items()
        if value <= D2_LOWEST
    ]


def coupling_problems(jobfile: JobFile, slices: Sequence[SliceSpec], graphs: Mapping[str, SliceGraph]) -> list[Problem]:
    """Both ends of a link need to hear each other."""
    tied = [graphs[spec.coupling.graph] for spec in slices if spec.coupling]
    if not any(graph.directed for graph in tied):
        return []
    what = f"{jobfile.job.method.name} ties the two ends of a link, and {jobfile.job.topology.kind} is directed"
    return [Problem(jobfile.where("topology"), what, "choose an undirected kind")]


def map_problems(jobfile: JobFile, columns: Mapping[str, int], item_bytes: int) -> list[Problem]:
    """columns: of the restriction maps that an agent keeps, by slice."""
    large = {name: count * item_bytes for name, count in columns.items() if count * item_bytes > LARGEST_MAPS}
    return [
        Problem(
            jobfile.where("method"),
            f"an agent would keep {size_bytes / 1e6:,.0f} MB of maps of {name}, one for each neighbour it may have; "
            f"{LARGEST_MAPS / 1e6:,.0f} MB are the limit",
            "use a topology with fewer neighbours, a smaller edge_width or a smaller head",
        )
        for name, size_bytes in large.items()
    ]


def budget_problems(jobfile: JobFile, slices: Sequence[SliceSpec]) -> list[Problem]:
    """A budget gives columns their turns itself, and every slice needs room for a column and for rounding."""
    budget_bytes = jobfile.job.exchange.budget_bytes_per_link
    if budget_bytes is None:
        return []
    where, found = jobfile.where("exchange", "budget_bytes_per_link"), []
    least = 2 * np.dtype(jobfile.job.dtype).itemsize * len(slices)
    if budget_bytes < least:
        what = f"{budget_bytes} bytes are too few for {counted(len(slices), 'slice')} that may share a link"
        found.append(Problem(where, what, f"use {least} or more"))
    if rare := [spec.name for spec in slices if spec.every > 1]:
        what = f"{', '.join(rare)} mixes every few rounds only, which a budget can't plan"
        found.append(Problem(where, what, "say method.gate_sync: every-round or local"))
    return found


def _brief(agents: Sequence[int]) -> str:
    head = ", ".join(map(str, agents[:6]))
    return f"{{{head}{', …' if len(agents) > 6 else ''}}} ({len(agents)})"


def rank_problems(agent_count: int, ranks: int) -> list[Problem]:
    if 1 <= ranks <= agent_count:
        return []
    what = f"{counted(ranks, 'rank')} can't share {counted(agent_count, 'agent')}: every rank hosts at least one"
    return [Problem("ranks", what, f"start 1 to {agent_count} ranks, or raise the agents' counts")]
