"""`parse-mpi plan`: the plan as tables, so that a person sees what will happen before it costs anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.sparse import csr_array

from parse_mpi.caveats import caveats
from parse_mpi.data.dataset import Dataset
from parse_mpi.data.pid import atoms, best_accuracy
from parse_mpi.errors import counted
from parse_mpi.exchange.routing import Route, chosen_transport
from parse_mpi.job import PidSourceKey
from parse_mpi.job.topology import DRAW_FROM_A_BASE
from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text
from parse_mpi.studies.memory import first_routes, rank_memory
from parse_mpi.topology.slice_graph import SliceGraph

AGENTS_SHOWN = 60  # above that many, agents are summed up by kind unless all are asked for
PIPED_WIDTH = 160  # columns where the output is no terminal
MPICH_COMMUNICATORS = 2_043


def print_plan(plan: Plan, dataset: Dataset, all_agents: bool) -> None:
    """Print agents, slices, graphs, traffic and ranks."""
    console = Console(highlight=False, width=None if Console().is_terminal else PIPED_WIDTH)
    job = plan.job
    console.print(
        f"{job.name}: method {job.method.name}, {counted(len(plan.agents), 'agent')} on {counted(plan.ranks, 'rank')}, "
        f"data {dataset.name} ({', '.join(f'{m} {list(s)}' for m, s in plan.shapes.items())}; "
        f"{plan.class_count} classes), {counted(job.train.rounds, 'round')} x "
        f"{counted(job.train.local_steps, 'local step')}, mode {job.mode}, device {job.device}",
        markup=False,
    )
    listed = all_agents or len(plan.agents) <= AGENTS_SHOWN
    tables = [
        _agents(plan, dataset) if listed else _kinds(plan, dataset),
        _slices(plan),
        _graphs(plan),
        _links(plan),
        _ranks(plan, dataset),
    ]
    for table in tables:
        console.print(table)
    for line in _notes(plan, dataset):
        console.print(line, markup=False)


def _table(title: str, columns: Sequence[str], text: Collection[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers stand right and never wrap; columns of `text` stand left and wrap between words where space is short."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for k, column in enumerate(columns):
        if column in text:
            words = " ".join([column, *(row[k] for row in rows)]).split()
            table.add_column(column, min_width=max(map(len, words)))
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _agents(plan: Plan, dataset: Dataset) -> Table:
    counts = [np.bincount(dataset.labels[index], minlength=plan.class_count) for index in plan.samples]
    digits = len(str(max(count.max() for count in counts)))
    rows = [
        (
            str(agent.id),
            agent.kind,
            str(plan.rank_of[agent.id]),
            str(counts[agent.id].sum()),
            " ".join(f"{n:>{digits}}" for n in counts[agent.id]),
        )
        for agent in plan.agents
    ]
    histogram = f"samples per class 0…{plan.class_count - 1}"
    return _table("Agents", ("agent", "kind", "rank", "samples", histogram), ("kind", histogram), rows)


def _kinds(plan: Plan, dataset: Dataset) -> Table:
    rows, sizes = [], plan.sizes()
    for kind in plan.kinds:
        ids = [agent.id for agent in plan.agents if agent.modalities == kind]
        classes = np.mean([len(np.unique(dataset.labels[plan.samples[i]])) for i in ids])
        spread = (f"{sizes[ids].mean():.1f}", str(sizes[ids].min()), str(sizes[ids].max()))
        rows.append(("+".join(kind), str(len(ids)), *spread, f"{classes:.1f}"))
    columns = ("kind", "agents", "samples: mean", "least", "most", "classes: mean")
    return _table("Agents by kind (--agents lists each)", columns, ("kind",), rows)


def _slices(plan: Plan) -> Table:
    rows, item = [], plan.item_bytes
    for spec in plan.slices:
        width = plan.layouts[spec.name].width
        links = len(plan.graphs[spec.graph].at(0).neighbours) if spec.graph else 0
        size = width * item
        cells = (str(len(spec.holders)), f"{width:,}", size_text(size), size_text(links * size))
        due = f", every {spec.every} rounds" if spec.every > 1 else ""
        rows.append((spec.name, f"{spec.graph}{due}" if spec.graph else "– (not shared)", *cells))
    return _table("Slices", ("slice", "graph", "holders", "parameters", "a row", "a round"), ("slice", "graph"), rows)


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
            _span(str(degrees.min()), "–", str(degrees.max())),
            f"{graph.active_degree():.3g}",
            f"{graph.spectral_gap():.4f}" + (" " if graph.static else "²"),
            chosen_transport(graph, plan.job.exchange.via),
        )
        rows.append(cells)
    title = "Graphs (parts that hang together, neighbours active in a round, spectral gap; ²: squared)"
    columns = ("graph", "kind", "agents", "parts", "degree", "active", "gap", "exchange")
    return _table(title, columns, ("graph", "kind", "parts"), rows)


def _topology_text(graph: SliceGraph) -> str:
    spec = graph.spec
    base = f" of {spec.base}" if spec.kind in DRAW_FROM_A_BASE else ""
    cycle = f", cycle of {graph.phases}" if graph.phases > 1 else ""
    return f"{'lazy ' if spec.lazy else ''}{spec.kind}{base}, {spec.scope}{cycle}"


def _schedules(plan: Plan) -> Iterable[str]:
    """What the table of graphs has no column for: exact averages, and what MATCHA has chosen."""
    for name, graph in plan.graphs.items():
        if rounds := graph.exact_after():
            yield f"graph {name}: the exact average after {counted(rounds, 'round')} of mixing"
        for part, drawn in graph.activations():
            p = drawn.probabilities
            yield (
                f"graph {name}, {counted(len(part), 'agent')}: {counted(len(p), 'matching')}, each active with "
                f"probability {_span(f'{p.min():.2f}', ' to ', f'{p.max():.2f}')}, alpha {drawn.alpha:.4f}"
            )


def _links(plan: Plan) -> Table:
    """Payload of a directed link: all slices whose graph contains it in the first round."""
    payload = csr_array((len(plan.agents),) * 2, dtype=np.int64)  # [receiver, sender]
    for name, graph in plan.graphs.items():
        matrix = graph.at(0)
        receivers = np.repeat(matrix.agents, matrix.degrees)
        row_bytes = np.full(len(receivers), plan.row_bytes(name))
        payload += csr_array((row_bytes, (receivers, matrix.neighbours)), payload.shape)
    links = payload.tocoo()
    kinds = sorted({agent.kind for agent in plan.agents})
    kind_of = np.array([kinds.index(agent.kind) for agent in plan.agents])
    low_end, high_end = np.sort(kind_of[np.stack(links.coords)], axis=0)
    rows = []
    for first, second in combinations_with_replacement(range(len(kinds)), 2):
        sizes = links.data[(low_end == first) & (high_end == second)]
        if len(sizes):
            size = _span(size_text(sizes.min()), " to ", size_text(sizes.max()))
            rows.append((f"{kinds[first]} – {kinds[second]}", str(len(sizes)), size))
    title = "Links between agents in the first round"
    return _table(title, ("from – to", "links", "bytes a link"), ("from – to",), rows)


def _ranks(plan: Plan, dataset: Dataset) -> Table:
    rows, sizes = [], plan.sizes()
    for rank in range(plan.ranks):
        agents = plan.agents_on(rank)
        routes = first_routes(plan, rank)
        memory = rank_memory(plan, dataset, rank, routes)
        own = memory.rows + memory.gradients + memory.optimiser + memory.exchange
        sent = sum(len(route.send_rows) * plan.row_bytes(name) for name, route in routes.items())
        cells = (
            str(rank),
            f"{len(agents)} ({', '.join(f'{n} {k}' for k, n in Counter(agent.kind for agent in agents).items())})",
            str(sum(sizes[agent.id] for agent in agents)),
            size_text(sent),
            _ranges(_receivers(routes)),
            size_text(memory.total),
            size_text(own),
        )
        rows.append(cells)
    columns = ("rank", "agents", "samples", "sends", "to ranks", "memory", "of agents")
    return _table("Ranks (sends: in the first round)", columns, ("agents", "to ranks"), rows)


def _receivers(routes: Mapping[str, Route]) -> set[int]:
    """The ranks that get rows by these routes."""
    return {peer for route in routes.values() for peer in route.send_to.tolist()}


def _notes(plan: Plan, dataset: Dataset) -> Iterable[str]:
    via = [chosen_transport(graph, plan.job.exchange.via) for graph in plan.graphs.values()]
    communicators = via.count("neighbour") + 1
    yield f"communicators: {communicators}, the world and one per neighbourhood graph"
    if communicators > MPICH_COMMUNICATORS:
        yield f"WARNING: MPICH allows {MPICH_COMMUNICATORS:,} communicators; exchange: p2p needs only the world"
    if "p2p" in via and plan.job.exchange.via == "auto":
        yield "p2p: the union of this graph's links is far denser than a round, so rows go by Isend/Irecv"
    yield from _schedules(plan)
    yield from _alignment(plan)
    if plan.job.device == "auto":
        yield "devices: chosen at the start, a GPU by local rank where there is one, else the CPU"
    for warning in caveats(plan, dataset):
        yield f"WARNING: {warning}"
    if isinstance(plan.job.data.source, PidSourceKey):
        source = plan.job.data.source.pid
        bits = ", ".join(f"{name} {value:.3g}" for name, value in atoms(source).items())
        yield f"information about the label in bits: {bits}"
        for kind in plan.kinds:
            yield f"best reachable accuracy of {'+'.join(kind)}: {best_accuracy(source, kind):.4f}"


def _alignment(plan: Plan) -> Iterable[str]:
    """Only multimodal agents align, so that on a modality's graph the weight is diluted (docs/method.md, 1.3)."""
    weights = {agent.id: plan.method.alignment_weight(agent.modalities, plan.agents) for agent in plan.agents}
    shown = []
    for m in plan.shapes:
        holders = [agent.id for agent in plan.agents if m in agent.modalities]
        if holders:
            shown.append(f"{m} {np.mean([weights[i] for i in holders]):.3g}")
    yield f"effective weight of the alignment term, mean over a modality's holders: {', '.join(shown)}"


def _span(low: str, to: str, high: str) -> str:
    return low if low == high else f"{low}{to}{high}"


def _ranges(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:8]))
    return f"{shown}, … ({len(ordered)})" if len(ordered) > 8 else shown or "–"
