"""What crosses between ranks and between nodes under every placement, and seconds to work out the minimum cut.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/placement.py

rows: of agents that all mix on one graph, in a round. MB: of the quickstart job with 32 agents of each kind, whose
slices mix on four graphs. Ranks are on nodes of four. work: of the heaviest rank, as a multiple of the mean. seconds:
of the processor.
"""

import time
from pathlib import Path

import numpy as np

from parse_mpi.data.sources import load_dataset
from parse_mpi.job import Topology
from parse_mpi.jobfile import load_job
from parse_mpi.plan import make_plan
from parse_mpi.population import kind_numbers
from parse_mpi.topology.placement import minimum_cut, simple_placements, work
from parse_mpi.topology.slice_graph import slice_graph
from parse_mpi.topology.traffic import make_traffic, uses_of

JOB = Path(__file__).parent.parent / "jobs" / "quickstart.yaml"
TOPOLOGIES = {
    "ring": {"kind": "ring"},
    "torus": {"kind": "torus"},
    "small world": {"kind": "small-world", "degree": 4, "probability": 0.1},
    "random regular": {"kind": "random-regular", "degree": 4},
    "one-peer exponential": {"kind": "one-peer-exponential"},
    "gossip on a torus": {"kind": "random-gossip", "base": "torus"},
}
SIZES = ((64, 8), (144, 8), (1000, 16), (10_000, 64))  # agents, ranks
RANKS_OF_NODE = 4


def show(name, traffic, kinds, costs, nodes, seed, rounds, unit):
    """A line for each placement."""
    ranks = len(nodes)
    found = simple_placements(kinds, costs, ranks)
    start = time.process_time()
    found["minimum-cut"] = minimum_cut(found, costs, nodes, traffic, seed)
    seconds = time.process_time() - start
    for placement, rank_of in found.items():
        between = traffic.between(rank_of)
        crossing = [size / rounds / unit for size in (between.total, between.across(nodes))]
        even = work(rank_of, costs, ranks).max() * ranks / costs.sum()
        taken = f"{seconds:7.2f}" if placement == "minimum-cut" else ""
        told = " ".join(f"{value:12,.1f}" for value in crossing)
        print(f"{name:<21} {len(kinds):>6} {ranks:>5}  {placement:<12} {told} {even:6.2f} {taken}", flush=True)


def main():
    columns = f"{'between ranks':>13} {'between nodes':>13} {'work':>5} {'seconds':>7}"
    print(f"{'rows of':<21} {'agents':>6} {'ranks':>5}  {'placement':<12}{columns}")
    for agents, ranks in SIZES:
        for name, topology in TOPOLOGIES.items():
            graph = slice_graph("graph", [range(agents)], Topology.model_validate(topology), 0, agents)
            traffic = make_traffic(uses_of(graph, 1000, 0))
            nodes, alike = np.arange(ranks) // RANKS_OF_NODE, np.zeros(agents, np.int64)
            show(name, traffic, alike, alike + 1, nodes, 0, 1, 1000)
    print("\nMB of the quickstart job")
    for name, topology in TOPOLOGIES.items():
        counts = [f"agents.{k}.count=32" for k in range(3)]
        few = "data.partition.min_per_agent=1"
        overrides = [f"topology={{{', '.join(f'{key}: {value}' for key, value in topology.items())}}}", few, *counts]
        jobfile = load_job(JOB, overrides)
        plan = make_plan(jobfile, load_dataset(jobfile.job.data, 0), 8, [rank // RANKS_OF_NODE for rank in range(8)])
        kinds = kind_numbers([era.agents for era in plan.eras])
        show(name, plan.traffic(), kinds, plan.costs(), plan.nodes, 0, plan.job.train.rounds, 1e6)


if __name__ == "__main__":
    main()
