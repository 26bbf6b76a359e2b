"""What the tables of `parse-mpi plan` have no column for: a line each, below them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array, csr_array

from parse_mpi.caveats import caveats
from parse_mpi.data.dataset import Dataset
from parse_mpi.data.pid import atoms, best_accuracy
from parse_mpi.errors import counted
from parse_mpi.exchange.routing import chosen_transport, phase_links
from parse_mpi.job import PidSourceKey
from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text

MPICH_COMMUNICATORS = 2_043


def notes(plan: Plan, dataset: Dataset, links: coo_array) -> Iterable[str]:
    """Communicators, schedules, overlap, budget, alignment, devices, warnings, and what generated data promise.

    links: what `link_payload` gives.
    """
    via = {chosen_transport(graph, plan.job.exchange.via) for era in plan.eras for graph in era.graphs.values()}
    count = max(communicators(era) for era in plan.eras)
    yield f"communicators: {count}, the world and one per phase of each neighbourhood graph"
    if count > MPICH_COMMUNICATORS:
        yield f"WARNING: MPICH allows {MPICH_COMMUNICATORS:,} communicators; exchange: p2p needs only the world"
    if "p2p" in via and plan.job.exchange.via == "auto":
        yield "p2p: the union of this graph's links is far denser than a round, so rows go by Isend/Irecv"
    yield from _schedules(plan)
    yield from _overlap(plan)
    yield from _budget(plan, links)
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


def communicators(plan: Plan) -> int:
    """How many communicators live at a time in the era of a plan, the world included."""
    graphs = [graph for graph in plan.graphs.values() if chosen_transport(graph, plan.job.exchange.via) == "neighbour"]
    return 1 + sum(len(phase_links(graph)) for graph in graphs)


def link_payload(plan: Plan) -> coo_array:
    """Bytes that each directed link would carry in the first round without a budget, [receiver, sender]."""
    payload = csr_array((len(plan.agents),) * 2, dtype=np.int64)
    for name, graph in plan.graphs.items():
        sender, receiver = graph.at(0).links().T
        of_link = np.full(len(sender), plan.row_bytes(name) + plan.message_bytes(name))
        payload += csr_array((of_link, (receiver, sender)), payload.shape)
    return payload.tocoo()


def _overlap(plan: Plan) -> Iterable[str]:
    """When rows travel."""
    if plan.job.train.order == "consensus":
        mode = plan.job.exchange.progress
        how = "chosen at the start by measuring" if mode == "auto" else mode
        yield f"order: consensus, rows travel while agents learn; exchange.progress: {how}"


def _budget(plan: Plan, links: coo_array) -> Iterable[str]:
    """How much of what is due fits through the link that carries most."""
    budget_bytes = plan.job.exchange.budget_bytes_per_link
    if budget_bytes is None or not links.nnz:
        return
    heaviest = int(links.data.argmax())
    size, (receiver, sender) = int(links.data[heaviest]), np.stack(links.coords)[:, heaviest]
    fits = f"{budget_bytes / size:.0%} of it a round" if size > budget_bytes else "all of it"
    yield (
        f"budget: {size_text(budget_bytes)} for a link and round; most is due on {sender} to {receiver}, "
        f"{size_text(size)}: {fits}"
    )


def _schedules(plan: Plan) -> Iterable[str]:
    """What the table of graphs has no column for: exact averages, and what MATCHA has chosen."""
    for name, graph in plan.graphs.items():
        if rounds := graph.exact_after():
            yield f"graph {name}: the exact average after {counted(rounds, 'round')} of mixing"
        for part, drawn in graph.activations():
            p = drawn.probabilities
            yield (
                f"graph {name}, {counted(len(part), 'agent')}: {counted(len(p), 'matching')}, each active with "
                f"probability {span(f'{p.min():.2f}', ' to ', f'{p.max():.2f}')}, alpha {drawn.alpha:.4f}"
            )


def _alignment(plan: Plan) -> Iterable[str]:
    """Only multimodal agents align, so that on a modality's graph the weight is diluted (docs/method.md, 1.3)."""
    shown = []
    for m in plan.shapes:
        weights = [plan.alignment_weights[agent.modalities] for agent in plan.agents if m in agent.modalities]
        if weights:
            shown.append(f"{m} {np.mean(weights):.3g}")
    yield f"effective weight of the alignment term, mean over a modality's holders: {', '.join(shown)}"


def span(low: str, to: str, high: str) -> str:
    """Two ends in words, or one where they are the same."""
    return low if low == high else f"{low}{to}{high}"
