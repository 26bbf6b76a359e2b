"""How every picture of a report looks: colours that colour-blind readers can tell apart, lines, axes, legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette without its yellow, which is hard to see on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
LONGEST_NAME = 30


class Style(NamedTuple):
    """Colour and dash pattern of a line."""

    color: str
    linestyle: str | tuple[int, tuple[float, ...]]


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: different colours first, then different dashes."""
    unique = list(dict.fromkeys(names))
    return {
        name: Style(PALETTE[k % len(PALETTE)], LINES[k // len(PALETTE) % len(LINES)]) for k, name in enumerate(unique)
    }


def short(name: str) -> str:
    """A kind's name, or its beginning where it is too long for a label."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1].rpartition('+')[0]}+…"


def new_figure(width_in: float, height_in: float, title: str) -> Figure:
    """An empty figure with the run's name on top."""
    figure = Figure(figsize=(width_in, height_in), layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06))
    figure.suptitle(title, x=0.01, ha="left", fontsize=9, color="#555555")
    return figure


def dress(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Title, labels with units, and a quiet frame."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def count_rounds(axes: Axes) -> None:
    """Whole numbers along the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1, steps=[1, 2, 5, 10]))


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend for the whole figure, as many entries a row as fit; the figure grows by its height."""
    labels = [str(handle.get_label()) for handle in handles]
    width_in, height_in = figure.get_size_inches()
    needs_in = [0.6 + 0.075 * len(label) for label in labels]
    columns = len(labels)
    while columns > 1 and sum(map(max, np.array_split(needs_in, columns))) > width_in:
        columns -= 1
    figure.set_size_inches(width_in, height_in + 0.2 * -(-len(labels) // columns))
    figure.legend(list(handles), labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
