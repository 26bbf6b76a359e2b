"""What each placement of agents on ranks would cost, as a table of `parse-mpi plan`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from parse_mpi.plan import Plan
from parse_mpi.run.summary import size_text
from parse_mpi.studies.tables import make_table
from parse_mpi.topology.placement import PLACEMENTS, work


def placements(plan: Plan) -> dict[str, NDArray[np.int64]]:
    """Rank of each agent, int64 [A], under every placement that a job can ask for."""
    return {name: plan.rank_of if name == plan.job.placement else plan.placed(name) for name in PLACEMENTS}


def placement_table(plan: Plan) -> Table:
    """Bytes that cross in a round, on average over the run, the most that one rank sends, and how even work is."""
    traffic, costs, rounds = plan.traffic(), plan.costs(), max(sum(plan.lengths()), 1)
    across = plan.nodes.max() > 0
    rows = []
    for name, rank_of in placements(plan).items():
        between, load = traffic.between(rank_of), work(rank_of, costs, plan.ranks)
        cells = [size_text(between.total / rounds), size_text(between.heaviest() / rounds)]
        if across:
            cells.insert(1, size_text(between.across(plan.nodes) / rounds))
        cells.append(f"{load.max() / max(load.mean(), 1):.2f}")
        rows.append((f"{name} *" if name == plan.job.placement else name, *cells))
    columns = ("placement", "between ranks", *(("between nodes",) if across else ()), "heaviest", "work")
    title = "Placements (bytes in an average round; heaviest: what one rank sends; work: most / mean; *: this job's)"
    return make_table(title, columns, ("placement",), rows)
