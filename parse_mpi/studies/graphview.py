"""The picture of the graphs that slices mix on.

Shapes: A agents, E edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from parse_mpi.seeding import stream
from parse_mpi.studies.recorded import RecordedRun, count_of
from parse_mpi.studies.style import PALETTE, legend_below, new_figure, short
from parse_mpi.topology.graphs import ordered
from parse_mpi.topology.slice_graph import SliceGraph

Ids = NDArray[np.int64]

MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")
EDGE = "#333333"
MOST_EDGES = 1500  # drawn in one panel; of more, a sample
MOST_NAMED = 40  # agents of a panel whose ids are all written
CIRCUMFERENCE_PT = 450.0
MOST_ERAS = 4
MOST_PANELS = 20  # where several eras are drawn
ERA_COLUMNS = 44  # characters beside a row


def graphs_figure(run: RecordedRun) -> Figure | None:
    """A panel for every graph: its holders on a circle in the order of their ids, and who mixes with whom.

    With events, a row for every era that is drawn, and a column for every graph that one of them has.
    """
    eras = drawn_eras(run)
    names = list(dict.fromkeys(name for k in eras for name in run.graphs[k]))
    if not names:
        return None
    columns = len(names) if len(eras) > 1 else {4: 2}.get(len(names), min(len(names), 3 if len(names) <= 9 else 6))
    rows = len(eras) * -(-len(names) // columns)
    figure = new_figure(max(3.2 * columns, 6.4), 3.5 * rows + 0.6, f"{run.title()}\n{_what(run, eras)}")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for k, row in zip(eras, np.array_split(panels, len(eras)), strict=True):
        for name, axes in zip(names, row, strict=False):
            if name in run.graphs[k]:
                _draw_graph(axes, run, k, name, run.graphs[k][name])
        if len(run.eras) > 1:
            _name_era(row[0], run, k)
    if run.ranks > len(PALETTE):
        scale = ScalarMappable(Normalize(0, run.ranks - 1), _rank_colours(run.ranks))
        figure.colorbar(scale, ax=panels.tolist(), label="rank", shrink=0.5)
    legend_below(figure, _legend(run, eras))
    return figure


def drawn_eras(run: RecordedRun) -> list[int]:
    """Which eras a picture has room for: the newest, then the first, then some between."""
    columns = len({name for graphs in run.graphs for name in graphs})
    room = max(1, min(len(run.eras), MOST_ERAS, MOST_PANELS // max(columns, 1)))
    return [int(k) for k in np.linspace(len(run.eras) - 1, 0, room)[::-1]]


def rounds_of(run: RecordedRun, era: int) -> tuple[int, int]:
    """The first and the last round of an era, as far as they are recorded."""
    ends = [later.start for later in run.eras[era + 1 :]]
    first = run.eras[era].start + 1
    return first, max(first, min([run.last_round, *ends]))


def circle(graph: SliceGraph) -> NDArray[np.float64]:
    """Position [A, 2] of every agent of a graph, in the order of `graph.agents`: clockwise by id from the top.

    Groups follow each other with a gap between them.
    """
    gap = 1 if len(graph.groups) > 1 else 0
    turn: dict[int, int] = {}
    places = 0
    for group in graph.groups:
        turn |= {agent: places + k for k, agent in enumerate(group)}
        places += len(group) + gap
    angle = np.array([turn[agent] for agent in graph.agents]) * 2 * np.pi / places
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def sampled(edges: Ids) -> Ids:
    """At most 1,500 of the edges [E, 2], drawn at random but the same ones each time."""
    if len(edges) <= MOST_EDGES:
        return edges
    return edges[np.sort(stream(0, "report").choice(len(edges), MOST_EDGES, replace=False))]


def matching(run: RecordedRun, era: int, graph: SliceGraph) -> Ids:
    """The pairs [E, 2] that met in an era's last round; its mixing matrix has the index of the round before it."""
    return ordered(graph.at(rounds_of(run, era)[1] - 1).links())


def _draw_graph(axes: Axes, run: RecordedRun, era: int, name: str, graph: SliceGraph) -> None:
    place, edges = circle(graph), graph.union_edges()
    shown = sampled(edges)
    _draw_edges(axes, graph, place, shown, 0.75 if graph.static else 0.2)
    if not graph.static:
        _draw_edges(axes, graph, place, matching(run, era, graph), 1.0, lightest=0.8)
    _draw_agents(axes, run, era, graph, place)
    pieces = len(graph.components())
    state = f"spectral gap {graph.spectral_gap():.2g}" if pieces == len(graph.groups) else f"{pieces} components"
    share = f"{len(shown):,} of " if len(shown) < len(edges) else ""
    size = f"{count_of(len(graph.agents), 'agent')}, {share}{count_of(len(edges), 'edge')}"
    axes.set_title(f"{name}\n{size}\n{state}", fontsize=9)
    axes.set(xlim=(-1.28, 1.28), ylim=(-1.28, 1.28), aspect="equal")


def _name_era(axes: Axes, run: RecordedRun, era: int) -> None:
    """The rounds of an era beside its row, and what began it."""
    first, last = rounds_of(run, era)
    rounds = f"round {first}" if first == last else f"rounds {first} to {last}"
    what = wrap("; ".join(run.eras[era].what), ERA_COLUMNS, max_lines=2, placeholder=" …")
    text = "\n".join([rounds, *what])
    axes.set(xlim=(-1.28, 1.28), ylim=(-1.28, 1.28), aspect="equal")
    axes.text(-1.4, 0, text, rotation=90, fontsize=8, ha="right", va="center", linespacing=1.3, color="#444444")


def _draw_edges(
    axes: Axes, graph: SliceGraph, place: NDArray[np.float64], edges: Ids, darkest: float, lightest: float = 0.05
) -> None:
    """Lines between agents, the more the thinner and the lighter, so that a dense graph is grey and not black."""
    ends = place[np.searchsorted(np.array(graph.agents), edges)]
    alpha, width_pt = np.clip([50 / max(len(edges), 1), 100 / max(len(edges), 1)], [lightest, 0.4], [darkest, 1.1])
    axes.add_collection(LineCollection(list(ends), colors=EDGE, alpha=alpha, linewidths=width_pt, zorder=1))


def _draw_agents(axes: Axes, run: RecordedRun, era: int, graph: SliceGraph, place: NDArray[np.float64]) -> None:
    agents = np.array(graph.agents)
    size_pt = float(np.clip(0.7 * CIRCUMFERENCE_PT / len(agents), 1.5, 9))
    rank_colours = _rank_colours(run.ranks)(run.rank_of[agents] / max(run.ranks - 1, 1))
    is_stray = np.isin(agents, _strays(graph))
    for members, marker in zip(run.kinds(len(MARKERS)).values(), cycle(MARKERS), strict=False):
        for stray in (False, True):
            chosen = members[era, agents] & (is_stray == stray)
            fill = rank_colours[chosen]
            axes.scatter(
                place[chosen, 0],
                place[chosen, 1],
                s=size_pt**2,
                marker=marker,
                facecolors="white" if stray else fill,
                edgecolors=fill if stray else "white",
                linewidths=size_pt / 6 if stray else size_pt / 16,
                zorder=2,
            )
    step = 1 if len(agents) <= MOST_NAMED else -(-len(agents) // 12)
    for k in range(0, len(agents) - step // 2, step):
        x, y = 1.16 * place[k]
        axes.text(x, y, str(agents[k]), fontsize=6.5, ha="center", va="center", color="#444444")


def _strays(graph: SliceGraph) -> list[int]:
    """Agents outside the largest component of their group."""
    return [agent for _, parts in graph.disconnected_groups() for part in parts[1:] for agent in part]


def _rank_colours(ranks: int) -> Colormap:
    return ListedColormap(PALETTE[:ranks]) if ranks <= len(PALETTE) else colormaps["viridis"]


def _legend(run: RecordedRun, eras: Sequence[int]) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], linestyle="", marker=marker, color="#555555", label=short(kind))
        for kind, marker in zip(run.kinds(len(MARKERS)), cycle(MARKERS), strict=False)
    ]
    if run.ranks <= len(PALETTE):
        handles += [Patch(color=PALETTE[rank], label=f"rank {rank}") for rank in range(run.ranks)]
    if any(_strays(graph) for k in eras for graph in run.graphs[k].values()):
        ring = Line2D([], [], linestyle="", marker="o", mfc="none", mec="#555555", mew=1.5)
        ring.set_label("hollow: outside the largest component")
        handles.append(ring)
    return handles


def _what(run: RecordedRun, eras: Sequence[int]) -> str:
    graphs = [graph for k in eras for graph in run.graphs[k].values()]
    sample = (
        f"; of many edges {MOST_EDGES:,} are drawn" if any(g.degrees().sum() > 2 * MOST_EDGES for g in graphs) else ""
    )
    some = f"; {len(eras)} of {len(run.eras)} eras" if len(eras) < len(run.eras) else ""
    if all(graph.static for graph in graphs):
        return (
            f"Who mixes with whom{sample}{some}\nSpectral gap: 1 - second largest |eigenvalue| of the mixing matrix W"
        )
    when = f"round {rounds_of(run, eras[0])[1]}" if len(eras) == 1 else "the last round of the era"
    return f"Faint: who can meet{sample}; dark: who met in {when}{some}\nSpectral gap: 1 - λ₂ of E[WᵀW]"
