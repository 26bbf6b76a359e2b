"""What pictures over rounds have in common: means and extremes of kinds of agents, and where events fall.

Shapes: A agents, M members of what one line stands for, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from parse_mpi.studies.recorded import RecordedRun, count_of
from parse_mpi.studies.style import short, styles

Array = NDArray[np.float64]

MOST_NAMED = 13  # eras; the events between more of them have no room for a label
LONGEST_EVENT = 28  # characters
EVENT_TEXT: dict[str, Any] = {
    "rotation": 90,
    "fontsize": 6.5,
    "color": "#555555",
    "va": "bottom",
    "bbox": {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
}


class Spread(NamedTuple):
    """Mean and extremes over the members of a group, each [R]; nan where no member has a finite value."""

    mean: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, values_RM: Array, members_RM: NDArray[np.bool_] | bool = True) -> Spread:
        known = np.ma.masked_invalid(np.where(members_RM, values_RM, np.nan))
        return cls(*(np.ma.filled(part, np.nan) for part in (known.mean(1), known.min(1), known.max(1))))


def running_mean(values: Array, window: int) -> Array:
    """Mean over the `window` (odd) rounds around each, [R]; at both ends and beside nan over those that there are."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel)
    count = np.convolve(known, kernel)
    inside = slice(window // 2, window // 2 + len(values))
    return np.where(known, total[inside] / np.maximum(count[inside], 1.0), np.nan)


def kind_legend(run: RecordedRun) -> Sequence[Line2D]:
    """One entry for each kind of agent, with how many there are."""
    look, handles = styles(run.kinds()), []
    for kind, members in run.kinds().items():
        low, high = members.sum(1).min(), members.sum(1).max()
        count = count_of(high, "agent") if low == high else f"{low:,} to {count_of(high, 'agent')}"
        handles.append(Line2D([], [], **look[kind]._asdict(), label=f"{short(kind)} ({count})"))
    return handles


def mark_events(axes: Axes, run: RecordedRun, named: bool = False) -> None:
    """A thin line between the rounds where an era ends and the next begins; named: with the events that began it."""
    for era in run.eras[1:]:
        at = era.start + 0.5
        axes.axvline(at, color="#999999", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0.5)
        if named and len(run.eras) <= MOST_NAMED:
            text = "\n".join(short_event(what) for what in era.what[:2]) + ("\n…" if len(era.what) > 2 else "")
            low = axes.get_xaxis_transform()
            axes.annotate(text, (at, 0.02), (3, 0), xycoords=low, textcoords="offset points", **EVENT_TEXT)


def short_event(what: str) -> str:
    """An event without who it concerns, or its beginning."""
    text = what.partition(":")[0]
    return text if len(text) <= LONGEST_EVENT else f"{text[: LONGEST_EVENT - 1]}…"
