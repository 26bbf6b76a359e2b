"""The tables of `parse-mpi plan --predict`: what a round will take on more nodes, and where more do not pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from parse_mpi.errors import counted
from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text
from parse_mpi.scaling.costmodel import FARTHEST, FITTED
from parse_mpi.scaling.predict import PAYS, Costs, Outlook, Prediction
from parse_mpi.studies.scaling import error_text
from parse_mpi.studies.tables import make_table, open_console

FAR = "~"  # marks an extrapolation


def print_predictions(plan: Plan, costs: Costs, nodes: int, found: Sequence[Outlook], unfit: Mapping[str, str]) -> None:
    """Print all topologies and placements by nodes, those of the job in detail, and what to think of them.

    nodes: the most that were asked for. unfit: topologies that don't suit the job, with the reason.
    """
    console = open_console()
    console.print(_overview(found))
    for outlook in found:
        if outlook.own:
            console.print(_detail(outlook))
    for line in _notes(plan, costs, nodes, found, unfit):
        console.print(line, markup=False)


def _overview(found: Sequence[Outlook]) -> Table:
    nodes = [prediction.nodes for prediction in found[0].predictions]
    rows = []
    for outlook in found:
        cells = [f"{_ms(p)} ({outlook.efficiency(p):.0%})" for p in outlook.predictions]
        name = f"{outlook.topology} (the job's)" if outlook.topology == found[0].topology else outlook.topology
        rows.append((name, outlook.placement, *cells, _pays(outlook)))
    heads = [counted(count, "node") for count in nodes]
    title = f"Milliseconds a round, and efficiency of more nodes ({FAR}: extrapolation)"
    return make_table(title, ("topology", "placement", *heads, "pays up to"), ("topology", "placement"), rows)


def _detail(outlook: Outlook) -> Table:
    parts = list(outlook.predictions[0].seconds)
    rows = []
    for prediction in outlook.predictions:
        loads = prediction.loads
        rows.append(
            (
                str(prediction.nodes),
                str(prediction.ranks),
                f"{loads.agents.max():.0f}",
                *(f"{1e3 * prediction.seconds[part]:.3g}" for part in parts),
                f"{(loads.messages_within + loads.messages_between).max():.3g}",
                size_text(float(loads.bytes_within.max())),
                size_text(float(loads.bytes_between.max())),
                ", ".join(name.replace("_", " ") for name in prediction.beyond) or "–",
            )
        )
    columns = (
        "nodes", "ranks", "agents a rank", *(f"{part}, ms" for part in parts), "messages", "to the same node",
        "to other nodes", "extrapolated",
    )  # fmt: skip
    title = f"{outlook.topology}, placed {outlook.placement}: parts of a round, and what the busiest rank sends"
    return make_table(title, columns, ("extrapolated",), rows)


def _notes(plan: Plan, costs: Costs, nodes: int, found: Sequence[Outlook], unfit: Mapping[str, str]) -> list[str]:
    network = {FITTED: "fitted to the same measurements", "": "not needed on one node"}
    lines = [
        f"costs: {costs.source}, measured with job {costs.job}; of sizes held out {error_text(costs.held_out)}",
        f"network between nodes: {network.get(costs.model.network, costs.model.network)}",
        f"a node has {counted(costs.cores, 'core')} and a rank {counted(costs.threads, 'thread')}, as measured; "
        "evaluation, records and checkpoints come on top",
        f"pays up to: so far every doubling of the nodes makes a round at least {PAYS} times faster",
        f"{FAR}: something lies more than {FARTHEST:g} times outside of what was measured",
    ]
    if costs.order != plan.job.train.order:
        lines.append(f"WARNING: costs were measured with train.order: {costs.order}; this job overlaps differently")
    if costs.job != plan.job.name:
        lines.append(f"WARNING: costs were measured with another job, {costs.job}; its networks may compute otherwise")
    if plan.later:
        lines.append("the job has several eras; this is the first")
    if (last := found[0].predictions[-1]).nodes < nodes:
        lines.append(f"{nodes} nodes: at {last.ranks // last.nodes} a node, more ranks than agents")
    return lines + [f"{topology} does not suit this job: {reason}" for topology, reason in unfit.items()]


def _ms(prediction: Prediction) -> str:
    return f"{FAR if prediction.beyond else ''}{1e3 * prediction.round_s:.3g}"


def _pays(outlook: Outlook) -> str:
    last = outlook.predictions[-1].nodes
    return f"{outlook.pays_up_to}" + (" or more" if outlook.pays_up_to == last > 1 else "")
