"""`parse-mpi plan`: the plan as tables, so that a person sees what will happen before it costs anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parse_mpi.data.dataset import Dataset
from parse_mpi.data.pid import atoms, best_accuracy
from parse_mpi.exchange.routing import chosen_transport, make_route
from parse_mpi.job import PidSourceKey
from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text
from parse_mpi.studies.memory import rank_memory

AGENTS_SHOWN = 60  # above that many, agents are summed up by kind unless all are asked for


def print_plan(plan: Plan, dataset: Dataset, all_agents: bool) -> None:
    """Print agents, slices, graphs, traffic and ranks."""
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    job = plan.job
    console.print(
        f"{job.name}: method {job.method.name}, {len(plan.agents)} agents on {plan.ranks} ranks, data {dataset.name} "
        f"({', '.join(f'{m} {list(s)}' for m, s in plan.shapes.items())}; {plan.class_count} classes), "
        f"{job.train.rounds} rounds x {job.train.local_steps} local steps, mode {job.mode}",
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
    for line in _notes(plan):
        console.print(line, markup=False)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k < left else "right")
    return table


def _agents(plan: Plan, dataset: Dataset) -> Table:
    table = _table("Agents", "agent", "kind", "rank", "samples", f"samples per class 0…{plan.class_count - 1}", left=2)
    for agent in plan.agents:
        labels = dataset.labels[plan.samples[agent.id]]
        histogram = " ".join(f"{n:>3}" for n in np.bincount(labels, minlength=plan.class_count))
        table.add_row(str(agent.id), agent.kind, str(plan.rank_of[agent.id]), str(len(labels)), histogram)
    return table


def _kinds(plan: Plan, dataset: Dataset) -> Table:
    table = _table(
        "Agents by kind (--agents lists each)", "kind", "agents", "samples, mean (least–most)", "classes, mean"
    )
    sizes = plan.sizes()
    for kind in plan.kinds:
        ids = [agent.id for agent in plan.agents if agent.modalities == kind]
        classes = np.mean([len(np.unique(dataset.labels[plan.samples[i]])) for i in ids])
        spread = f"{sizes[ids].mean():.1f} ({sizes[ids].min()}–{sizes[ids].max()})"
        table.add_row("+".join(kind), str(len(ids)), spread, f"{classes:.1f}")
    return table


def _slices(plan: Plan) -> Table:
    table = _table("Slices", "slice", "graph", "holders", "parameters", "bytes a row", "bytes a round", left=2)
    item = _item_bytes(plan)
    for spec in plan.slices:
        width = plan.layouts[spec.name].width
        links = len(plan.graphs[spec.graph].at(0).neighbours) if spec.graph else 0
        size = width * item
        cells = (str(len(spec.holders)), f"{width:,}", size_text(size), size_text(links * size))
        table.add_row(escape(spec.name), spec.graph or "– (not shared)", *cells)
    return table


def _graphs(plan: Plan) -> Table:
    table = _table(
        "Graphs", "graph", "kind", "agents", "components", "degree", "links a round", "spectral gap", "exchange", left=2
    )
    for name, graph in plan.graphs.items():
        degrees = graph.degrees()
        components = graph.components()
        sizes = f" of {', '.join(str(len(c)) for c in components[:5])}" if len(components) > 1 else ""
        table.add_row(
            name,
            f"{graph.spec.kind}, {graph.spec.scope}",
            str(len(graph.agents)),
            f"{len(components)}{sizes}",
            f"{degrees.min()}–{degrees.max()}" if len(degrees) else "–",
            str(len(graph.at(0).neighbours)),
            f"{graph.spectral_gap():.4f}" + ("" if graph.static else " (squared)"),
            chosen_transport(graph, plan.job.exchange.via),
        )
    return table


def _links(plan: Plan) -> Table:
    """Payload of a directed link: all slices whose graph contains it in the first round."""
    table = _table("Links between agents in the first round", "from – to", "links", "bytes a link and round", left=1)
    payload: Counter[tuple[int, int]] = Counter()
    for name, graph in plan.graphs.items():
        width = sum(plan.layouts[spec.name].width for spec in plan.slices if spec.graph == name)
        matrix = graph.at(0)
        receivers = np.repeat(matrix.agents, np.diff(matrix.starts))
        for sender, receiver in zip(matrix.neighbours.tolist(), receivers.tolist(), strict=True):
            payload[sender, receiver] += width * _item_bytes(plan)
    kinds: dict[str, list[int]] = {}
    for (sender, receiver), size in payload.items():
        ends = " – ".join(sorted((plan.agents[sender].kind, plan.agents[receiver].kind)))
        kinds.setdefault(ends, []).append(size)
    for ends, sizes in sorted(kinds.items()):
        low, high = size_text(min(sizes)), size_text(max(sizes))
        table.add_row(ends, str(len(sizes)), low if low == high else f"{low} to {high}")
    return table


def _ranks(plan: Plan, dataset: Dataset) -> Table:
    table = _table("Ranks", "rank", "agents", "samples", "device", "sends a round", "to ranks", "memory", "of agents")
    sizes = plan.sizes()
    for rank in range(plan.ranks):
        agents = plan.agents_on(rank)
        sent, peers = _sent(plan, rank)
        memory = rank_memory(plan, dataset, rank)
        own = memory.rows + memory.gradients + memory.optimiser + memory.exchange
        table.add_row(
            str(rank),
            f"{len(agents)} ({', '.join(f'{n} {k}' for k, n in Counter(agent.kind for agent in agents).items())})",
            str(sum(sizes[agent.id] for agent in agents)),
            plan.job.device,
            size_text(sent),
            _ranges(peers),
            size_text(memory.total),
            size_text(own),
        )
    return table


def _sent(plan: Plan, rank: int) -> tuple[int, set[int]]:
    """Bytes that a rank sends in the first round, and the ranks that it sends to."""
    total, peers = 0, set[int]()
    local = {agent.id for agent in plan.agents_on(rank)}
    for name, graph in plan.graphs.items():
        width = sum(plan.layouts[spec.name].width for spec in plan.slices if spec.graph == name)
        route = make_route(graph.at(0), plan.rank_of, rank, [i for i in graph.agents if i in local])
        total += len(route.send_rows) * width * _item_bytes(plan)
        peers |= set(route.send_to.tolist())
    return total, peers


def _notes(plan: Plan) -> Iterable[str]:
    via = [chosen_transport(graph, plan.job.exchange.via) for graph in plan.graphs.values()]
    yield f"communicators: {via.count('neighbour') + 1} (MPICH allows 2,043): the world and one per neighbourhood graph"
    if "p2p" in via:
        yield "p2p: the union of this graph's links is far denser than a round, so rows go by Isend/Irecv"
    yield from _alignment(plan)
    if plan.job.device == "auto":
        yield "devices: chosen at the start, a GPU by local rank where there is one, else the CPU"
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


def _ranges(numbers: Iterable[int]) -> str:
    ordered = sorted(numbers)
    shown = ", ".join(map(str, ordered[:8]))
    return f"{shown}, … ({len(ordered)})" if len(ordered) > 8 else shown or "–"


def _item_bytes(plan: Plan) -> int:
    return int(np.dtype(plan.job.dtype).itemsize)
