"""Run directories with made-up metrics, and what a figure shows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from parse_mpi.data.sources import load_dataset
from parse_mpi.job import Job
from parse_mpi.jobfile import dump_job, load_job
from parse_mpi.plan import Plan, make_plan
from parse_mpi.storage.layout import Array
from parse_mpi.storage.metrics import write_segment, write_table
from parse_mpi.studies.recorded import RecordedRun

KINDS = (("top", 3), ("top+bottom", 4), ("bottom", 3), ("top+bottom", 2))
PHASES = ["local_steps", "wait", "evaluate"]
PREDICTIONS = ["ensemble", "unique", "redundant", "synergistic"]
RING = {"kind": "ring"}
GOSSIP = {"kind": "random-gossip", "base": "ring"}
PIECES = {"kind": "erdos-renyi", "probability": 0.1, "scope": "induced", "allow_disconnected": True}

# Agents 0-2 hold top, 3-6 and 10-11 both, 7-9 bottom.
EVENTS = (
    {"kind": "join", "round": 5, "agents": [9]},
    {"kind": "lose", "round": 10, "agents": [3, 4], "modality": "top"},
    {"kind": "cut", "round": 10, "modality": "top"},
    {"kind": "cut", "round": 10, "links": [[0, 1]]},
    {"kind": "leave", "round": 25, "agents": [0, 1, 2]},
    {"kind": "gain", "round": 50, "agents": [7], "modality": "top"},
)


def make_job(
    topology: dict[str, object],
    method: str = "parse",
    kinds: tuple[tuple[str, int], ...] = KINDS,
    events: tuple[dict[str, object], ...] = (),
) -> Job:
    return Job.model_validate(
        {
            "name": "synthetic",
            "agents": [{"modalities": kind.split("+"), "count": count} for kind, count in kinds],
            "topology": topology,
            "method": {"name": method},
            "events": events,
            "train": {"rounds": 60},
        }
    )


class Bench:
    """A run directory whose metrics are made up, except for the plan's tables."""

    def __init__(self, path: Path, job: Job):
        path.mkdir(parents=True, exist_ok=True)
        (path / "job.yaml").write_text(dump_job(job))
        self.path = path
        jobfile = load_job(path / "job.yaml")
        self.plan: Plan = make_plan(jobfile, load_dataset(job.data, job.seed), ranks=2)
        self.kinds = np.array([agent.kind for agent in self.plan.agents])
        self.generator = np.random.default_rng(0)
        self.components = [
            spec.name
            for spec in self.plan.slices
            for part in (self.plan.graphs[spec.graph].components() if spec.graph else [spec.holders])
            if len(part) > 1
        ]
        self.slices = [spec.name for spec in self.plan.slices]
        self.rounds = 0
        self.histogram = self.generator.integers(0, 9, (len(self.kinds), 4))
        self._write_tables()

    def add(self, rounds: int, ranks: int = 2, evaluated: bool = True) -> dict[str, Array]:
        """One more segment, evaluated at its last round; returns what it holds."""
        draw, agents = self.generator, len(self.kinds)
        first, self.rounds = self.rounds + 1, self.rounds + rounds
        index = np.arange(first, self.rounds + 1)
        loss = draw.random((rounds, agents, 4)) + 0.1
        loss[:, ["+" not in kind for kind in self.kinds], 3] = 0.0
        made: dict[str, Array] = {
            "rounds/round": index,
            "rounds/loss": loss,
            "ranks/round": index,
            "ranks/seconds": draw.random((rounds, ranks, len(PHASES))),
            "ranks/travel_seconds": draw.random((rounds, ranks)),
            "ranks/sent_bytes": draw.integers(1, 10**6, (rounds, ranks, len(self.slices))),
            "rounds/payload_bytes": draw.integers(1, 10**6, (rounds, len(self.slices))),
            "rounds/waiting_bytes": np.zeros((rounds, len(self.slices)), np.int64),
            "links/last_round": np.full(ranks, self.rounds),
            "links/slice": np.arange(ranks),
            "links/source": np.arange(ranks),
            "links/destination": (np.arange(ranks) + 1) % ranks,
            "links/bytes": draw.integers(1, 10**6, ranks),
        }
        if evaluated:
            accuracy = draw.random((1, agents, 2, 2, len(PREDICTIONS)))
            accuracy[:, ["+" not in kind for kind in self.kinds], :, :, 3] = np.nan
            made["evaluations/round"] = index[-1:]
            made["evaluations/accuracy"] = accuracy
            made["evaluations/consensus_distance"] = draw.random((1, len(self.components)))
        write_segment(self.path, first, self.rounds, made, self._attributes(evaluated))
        return made

    def read(self) -> RecordedRun:
        return RecordedRun.read(self.path)

    def _write_tables(self) -> None:
        tables = {
            "agents/id": np.arange(len(self.kinds)),
            "agents/kind": self.kinds,
            "agents/class_histogram": self.histogram,
            "slices/name": np.array(self.slices),
            "slices/graph": np.array([spec.graph for spec in self.plan.slices]),
            "eras/start": np.array([era.start for era in self.plan.eras]),
        }
        labels = {"modalities": list(self.plan.shapes), "class_names": ["a", "b", "c", "d"]}
        write_table(self.path, "plan", tables, {"agents": labels})

    def _attributes(self, evaluated: bool) -> dict[str, dict[str, list[str]]]:
        attributes = {
            "rounds/loss": {"term": ["total", "ensemble", "heads", "contrastive"]},
            "ranks/seconds": {"phase": PHASES},
            "rounds/payload_bytes": {"slice": self.slices},
            "rounds/waiting_bytes": {"slice": self.slices},
        }
        if evaluated:
            attributes["evaluations/accuracy"] = {
                "split": ["validation", "test"],
                "weighting": ["global", "local"],
                "prediction": PREDICTIONS,
            }
            attributes["evaluations/consensus_distance"] = {"component": self.components}
        return attributes


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.canvas.draw()
    return figure


def panel(figure: Figure, title: str) -> Axes:
    """The one panel whose title begins so."""
    (found,) = [axes for axes in figure.axes if (axes.get_title() or axes.get_title("left")).startswith(title)]
    return found


def line(axes: Axes, label: str) -> NDArray[np.float64]:
    """The points [n, 2] of the one line of that name."""
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(found.get_xydata())
