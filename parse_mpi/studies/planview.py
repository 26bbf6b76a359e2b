"""`parse-mpi plan`: the plan as tables, so that a person sees what will happen before it costs anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations_with_replacement

import numpy as np
from rich.table import Table
from scipy.sparse import coo_array

from parse_mpi.data.dataset import Dataset
from parse_mpi.errors import counted
from parse_mpi.exchange.routing import Route, chosen_transport
from parse_mpi.job.topology import DRAW_FROM_A_BASE
from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text
from parse_mpi.studies.memory import first_routes, rank_memory, sent_bytes
from parse_mpi.studies.placementview import placement_table
from parse_mpi.studies.plannotes import communicators, link_payload, notes, span
from parse_mpi.studies.tables import make_table, open_console
from parse_mpi.topology.slice_graph import SliceGraph

AGENTS_SHOWN = 60  # above that many, agents are summed up by kind unless all are asked for


def print_plan(plan: Plan, dataset: Dataset, all_agents: bool) -> None:
    """Print agents, slices, graphs, traffic and ranks."""
    console = open_console()
    job = plan.job
    console.print(
        f"{job.name}: method {job.method.name}, {counted(len(plan.agents), 'agent')} on {counted(plan.ranks, 'rank')}, "
        f"data {dataset.name} ({', '.join(f'{m} {list(s)}' for m, s in plan.shapes.items())}; "
        f"{plan.class_count} classes), {counted(job.train.rounds, 'round')} x "
        f"{counted(job.train.local_steps, 'local step')}, mode {job.mode}, device {job.device}",
        markup=False,
    )
    listed = all_agents or len(plan.agents) <= AGENTS_SHOWN
    links = link_payload(plan)
    tables = [
        _agents(plan, dataset) if listed else _kinds(plan, dataset),
        _slices(plan),
        _graphs(plan),
        _links(plan, links),
        _ranks(plan, dataset),
        *([placement_table(plan)] if plan.ranks > 1 else []),
        *([_eras(plan)] if plan.later else []),
    ]
    for table in tables:
        console.print(table)
    for line in notes(plan, dataset, links):
        console.print(line, markup=False)


def _agents(plan: Plan, dataset: Dataset) -> Table:
    counts = [np.bincount(dataset.labels[index], minlength=plan.class_count) for index in plan.samples]
    digits = len(str(max(count.max() for count in counts)))
    rows = [
        (
            str(agent.id),
            agent.kind or "– (away)",
            str(plan.rank_of[agent.id]),
            str(counts[agent.id].sum()),
            " ".join(f"{n:>{digits}}" for n in counts[agent.id]),
        )
        for agent in plan.agents
    ]
    histogram = f"samples per class 0…{plan.class_count - 1}"
    return make_table("Agents", ("agent", "kind", "rank", "samples", histogram), ("kind", histogram), rows)


def _kinds(plan: Plan, dataset: Dataset) -> Table:
    rows, sizes = [], plan.sizes()
    for kind in plan.kinds:
        ids = [agent.id for agent in plan.agents if agent.modalities == kind]
        classes = np.mean([len(np.unique(dataset.labels[plan.samples[i]])) for i in ids])
        spread = (f"{sizes[ids].mean():.1f}", str(sizes[ids].min()), str(sizes[ids].max()))
        rows.append(("+".join(kind), str(len(ids)), *spread, f"{classes:.1f}"))
    columns = ("kind", "agents", "samples: mean", "least", "most", "classes: mean")
    return make_table("Agents by kind (--agents lists each)", columns, ("kind",), rows)


def _slices(plan: Plan) -> Table:
    rows, item = [], plan.item_bytes
    for spec in plan.slices:
        width = plan.layouts[spec.name].width
        graph, sent = spec.graph, plan.travelling(spec.name)
        if spec.coupling:
            graph, sent = spec.coupling.graph, spec.coupling.width
        links = int(np.isin(plan.graphs[graph].at(0).neighbours, spec.holders).sum()) if graph else 0
        round_bytes = links * item * sent
        cells = (str(len(spec.holders)), f"{width:,}", size_text(width * item), size_text(round_bytes))
        due = f", every {spec.every} rounds" if spec.every > 1 else ", by maps" if spec.coupling else ""
        rows.append((spec.name, f"{graph}{due}" if graph else "– (not shared)", *cells))
    columns = ("slice", "graph", "holders", "parameters", "a row", "a round")
    return make_table("Slices", columns, ("slice", "graph"), rows)


def _graphs(plan: Plan) -> Table:
    rows = []
    for name, graph in plan.graphs.items():
        degrees = graph.degrees()
        components = graph.components()
        sizes = f" of {', '.join(str(len(c)) for c in components[:5])}" if len(components) > 1 else ""
        cells = (
            name,
            _topology_text(graph),
            str(len(graph.agents)),
            f"{len(components)}{sizes}",
            span(str(degrees.min()), "–", str(degrees.max())),
            f"{graph.active_degree():.3g}",
            f"{graph.spectral_gap():.4f}" + (" " if graph.static else "²"),
            chosen_transport(graph, plan.job.exchange.via),
        )
        rows.append(cells)
    title = "Graphs (parts that hang together, neighbours active in a round, spectral gap; ²: squared)"
    columns = ("graph", "kind", "agents", "parts", "degree", "active", "gap", "exchange")
    return make_table(title, columns, ("graph", "kind", "parts"), rows)


def _topology_text(graph: SliceGraph) -> str:
    spec = graph.spec
    if graph.weights is not None:
        return "exact mean"
    base = f" of {spec.base}" if spec.kind in DRAW_FROM_A_BASE else ""
    cycle = f", cycle of {graph.phases}" if graph.phases > 1 else ""
    return f"{'lazy ' if spec.lazy else ''}{spec.kind}{base}, {spec.scope}{cycle}"


def _links(plan: Plan, links: coo_array) -> Table:
    kinds = sorted({agent.kind for agent in plan.agents})
    kind_of = np.array([kinds.index(agent.kind) for agent in plan.agents])
    low_end, high_end = np.sort(kind_of[np.stack(links.coords)], axis=0)
    rows = []
    for first, second in combinations_with_replacement(range(len(kinds)), 2):
        sizes = links.data[(low_end == first) & (high_end == second)]
        if len(sizes):
            size = span(size_text(sizes.min()), " to ", size_text(sizes.max()))
            rows.append((f"{kinds[first]} – {kinds[second]}", str(len(sizes)), size))
    title = "Links between agents in the first round"
    return make_table(title, ("from – to", "links", "bytes a link"), ("from – to",), rows)


def _eras(plan: Plan) -> Table:
    rows = []
    for era in plan.eras:
        here = sum(bool(agent.modalities) for agent in era.agents)
        holders = ", ".join(f"{name} {len(graph.agents)}" for name, graph in era.graphs.items())
        what = "; ".join(era.what) or "the start"
        rows.append((str(era.start), what, str(here), holders or "no graph", str(communicators(era))))
    title = "Eras (after so many rounds; holders of each graph; communicators, made anew)"
    return make_table(title, ("after", "what happens", "agents", "holders", "comms"), ("what happens", "holders"), rows)


def _ranks(plan: Plan, dataset: Dataset) -> Table:
    rows, sizes = [], plan.sizes()
    for rank in range(plan.ranks):
        agents = plan.agents_on(rank)
        routes = [first_routes(era, rank) for era in plan.eras]
        eras = [rank_memory(era, dataset, rank, found) for era, found in zip(plan.eras, routes, strict=True)]
        memory = max(eras, key=lambda made: made.total)
        own = memory.rows + memory.gradients + memory.optimiser + memory.checkpoint + memory.exchange
        cells = (
            str(rank),
            f"{len(agents)} ({', '.join(f'{n} {k}' for k, n in Counter(agent.kind for agent in agents).items())})",
            str(sum(sizes[agent.id] for agent in agents)),
            size_text(sent_bytes(plan, rank, routes[0])),
            _ranges(_receivers(routes[0])),
            size_text(memory.total),
            size_text(own),
        )
        rows.append(cells)
    columns = ("rank", "agents", "samples", "sends", "to ranks", "memory", "of agents")
    return make_table("Ranks (sends: in the first round)", columns, ("agents", "to ranks"), rows)


def _receivers(routes: Mapping[str, Route]) -> set[int]:
    """The ranks that get rows by these routes."""
    return {peer for route in routes.values() for peer in route.send_to.tolist()}


def _ranges(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:8]))
    return f"{shown}, … ({len(ordered)})" if len(ordered) > 8 else shown or "–"
