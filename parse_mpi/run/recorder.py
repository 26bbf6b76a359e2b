"""Collects what a round produced and writes it as metrics segments (docs/file-formats.md lists the data sets).

Arrays by agent are the same on any rank count; what depends on ranks lies in the groups `ranks` and `links`.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.personal import STATISTICS
from parse_mpi.data.dataset import Dataset
from parse_mpi.errors import StorageError
from parse_mpi.exchange.clustered import ClusteredExchange
from parse_mpi.exchange.host import peak_bytes, usable_cpus
from parse_mpi.exchange.world import World
from parse_mpi.job import AdaptiveWidths, LearntWeights
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.model.heads import SLICE_TYPES, prediction_names
from parse_mpi.plan import Plan
from parse_mpi.run.assembly import Assembly
from parse_mpi.run.consensus import Component, components
from parse_mpi.run.evaluation import SPLITS
from parse_mpi.run.final import Table
from parse_mpi.run.phases import PHASES
from parse_mpi.slurm import slurm_restarts
from parse_mpi.storage.metrics import write_segment, write_table


@dataclass
class Rows:
    """Rows of metrics that are not written yet: lists with an entry per round, or per evaluation, and bytes by link.

    final: the table of the end, once there is one.
    """

    rounds: list[int] = field(default_factory=list)
    losses: list[NDArray[np.float64]] = field(default_factory=list)
    seconds: list[NDArray[np.float64]] = field(default_factory=list)
    travel: list[float] = field(default_factory=list)
    sent: list[NDArray[np.int64]] = field(default_factory=list)
    payload: list[NDArray[np.int64]] = field(default_factory=list)
    waiting: list[NDArray[np.int64]] = field(default_factory=list)
    cluster: list[NDArray[np.int16]] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    accuracy: list[NDArray[np.float64]] = field(default_factory=list)
    weights: list[NDArray[np.float64]] = field(default_factory=list)
    widths: list[NDArray[np.float64]] = field(default_factory=list)
    taken: list[NDArray[np.float64]] = field(default_factory=list)
    distance: list[Mapping[Component, float]] = field(default_factory=list)
    drift: list[Mapping[Component, float]] = field(default_factory=list)
    final: list[Table] = field(default_factory=list)
    links: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __add__(self, later: Rows) -> Rows:
        """These rows and later ones behind them."""
        return Rows(**{f.name: getattr(self, f.name) + getattr(later, f.name) for f in fields(self)})


class Recorder:
    """Buffers rows of metrics on every rank; `take` gathers them on rank 0, which writes one segment."""

    def __init__(self, world: World, plan: Plan, run_dir: Path):
        """plan: of the whole run as the job says it, with all its eras."""
        self.world = world
        self.plan = plan
        self.run_dir = run_dir
        self.ids = np.flatnonzero(plan.rank_of == world.rank)  # whether they take part or are away
        specs = [spec for era in reversed(plan.eras) for spec in era.slices]
        self.slices = {spec.name: spec for spec in sorted(specs, key=lambda spec: bool(spec.graph))}
        self.slice_names = list(dict.fromkeys(spec.name for era in plan.eras for spec in era.slices))
        self.components: list[Component] = []
        self.follow(plan)
        self.personal = [name for name in self.slice_names if self.slices[name].personal]
        self.clustered = any(graph.clusters > 1 for era in plan.eras for graph in era.graphs.values())
        self.adaptive_widths = isinstance(plan.job.method.slices, AdaptiveWidths)
        self._rows, self._taken = Rows(), Rows()

    def follow(self, plan: Plan) -> None:
        """The same run with fewer agents from some round on; what is measured anew comes behind what was before."""
        self.eras, self.isolated = plan.eras, plan.isolated
        self.components = list(dict.fromkeys([*self.components, *(c for era in self.eras for c in components(era))]))

    def add_round(
        self, done: int, now: Assembly, losses: Tensor, seconds: NDArray[np.float64], travel_s: float
    ) -> None:
        """After `done` finished rounds: losses [A, T] of the agents that take part now, seconds [phase], what was sent.

        travel_s: from posting the exchange until its rows were seen to have arrived.
        """
        rows = self._rows
        rows.rounds.append(done)
        rows.losses.append(self._of_all(now.group.ids, losses.double().cpu().numpy()))
        rows.seconds.append(seconds)
        rows.travel.append(travel_s)
        sent: Counter[str] = Counter()
        for exchange in now.exchanges:
            for name, by_peer in exchange.sent_bytes().items():
                for peer, size_bytes in by_peer.items():
                    sent[name] += size_bytes
                    rows.links[peer, self.slice_names.index(name)] += size_bytes
        rows.sent.append(np.array([sent[name] for name in self.slice_names], np.int64))
        rows.payload.append(self._by_slice(exchange.payload_bytes() for exchange in now.exchanges))
        rows.waiting.append(self._by_slice(exchange.waiting_bytes(done - 1) for exchange in now.exchanges))
        if self.clustered:
            rows.cluster.append(self._clusters(now))

    def _clusters(self, now: Assembly) -> NDArray[np.int16]:
        """A number for the cluster that every agent mixed in this round, int16 [A] by id; -1 without one."""
        exchanges = [exchange for exchange in now.averaging if isinstance(exchange, ClusteredExchange)]
        cluster = np.full(len(self.plan.agents), -1, np.int16)
        for k, members in enumerate(chain(*(exchange.clusters for exchange in exchanges))):
            cluster[list(members)] = k
        return cluster

    def add_evaluation(
        self,
        done: int,
        now: Assembly,
        accuracy: NDArray[np.float64],
        distance: Mapping[Component, float],
        drift: Mapping[Component, float],
    ) -> None:
        """Accuracy [A, split, weighting, prediction] of the agents that take part now; the others by component."""
        rows = self._rows
        rows.evaluated.append(done)
        rows.accuracy.append(self._of_all(now.group.ids, accuracy))
        weights = now.group.alignment.current(done - 1).double().cpu().numpy()
        rows.weights.append(self._of_all(now.group.ids, weights))
        if self.adaptive_widths:
            rows.widths.append(self._of_all(now.group.ids, now.group.widths()))
        if isinstance(self.plan.method.weights, LearntWeights):
            rows.taken.append(self._of_all(now.group.ids, self._weights_taken(now)))
        rows.distance.append(distance)
        if self.personal:
            rows.drift.append(drift)

    def _weights_taken(self, now: Assembly) -> NDArray[np.float64]:
        """Statistics of the weights of local agents that take part, [A, personal slice, statistic]."""
        agents, found = len(now.group.agents), now.group.personal.statistics() if now.group.personal else {}
        nothing = np.full((agents, len(STATISTICS)), np.nan)
        return np.stack([found.get(name, nothing) for name in self.personal], axis=1)

    def add_final(self, table: Table) -> None:
        """What was seen of agents at the end (run.final.close_look), to be written with the rows of the last round."""
        self._rows.final.append(table)

    def take(self) -> Callable[[], object]:
        """Gather all rows since the last time on rank 0; what is returned writes them there, as one segment.

        All ranks call it together, and afterwards `settle`. What is returned may run in another thread meanwhile. It
        raises StorageError like storage.metrics.write_segment.
        """
        rows, self._rows, self._taken = self._rows, Rows(), self._rows
        if not rows.rounds:
            return lambda: None
        arrays, attributes = self._gather(rows), self._attributes(rows)

        def write() -> None:
            for table in rows.final:
                write_table(self.run_dir, "final", *table)
            write_segment(self.run_dir, rows.rounds[0], rows.rounds[-1], arrays, attributes)

        return write

    def settle(self, written: bool) -> None:
        """Whether what was taken is written now; otherwise it goes with the next segment, and nothing is lost yet."""
        if not written:
            self._rows = self._taken + self._rows
        self._taken = Rows()

    def write_tables(self, dataset: Dataset) -> None:
        """The static tables of agents, slices and eras; rank 0 only."""
        plan = self.plan
        widths = {name: layout.width for era in plan.eras for name, layout in era.layouts.items()}
        histogram = np.zeros((len(plan.agents), plan.class_count), np.int64)
        for agent in plan.agents:
            histogram[agent.id] = np.bincount(dataset.labels[plan.samples[agent.id]], minlength=plan.class_count)
        arrays = {
            "agents/id": np.arange(len(plan.agents)),
            "agents/kind": np.array([agent.kind for agent in plan.agents]),
            "agents/class_histogram": histogram,
            "slices/name": np.array(self.slice_names),
            "slices/graph": np.array([self.slices[name].graph for name in self.slice_names]),
            "slices/parameters": np.array([widths[name] for name in self.slice_names]),
            "slices/holders": np.array([len(self.slices[name].holders) for name in self.slice_names]),
        }
        attributes = {"agents": {"class_names": list(dataset.class_names), "modalities": list(plan.shapes)}}
        write_table(self.run_dir, "plan", arrays, attributes)
        write_table(self.run_dir, "placement", {"placement/rank": plan.rank_of}, {})
        self._write_eras()

    def write_eras(self) -> str:
        """The table of eras anew, where agents were cut off. Returns why that failed, or ""."""
        try:
            if self.world.rank == 0:
                self._write_eras()
        except StorageError as error:
            return str(error)
        return ""

    def _write_eras(self) -> None:
        arrays = {
            "eras/start": np.array([era.start for era in self.eras]),
            "eras/what": np.array(["; ".join(era.what) for era in self.eras]),
            "eras/kind": np.array([[agent.kind for agent in era.agents] for era in self.eras]),
            "isolations/round": np.array([done for done, _ in self.isolated], np.int64),
            "isolations/agent": np.array([agent for _, agent in self.isolated], np.int64),
        }
        write_table(self.run_dir, "eras", arrays, {})

    def write_ending(self, seconds: NDArray[np.float64]) -> str:
        """Seconds [phase] of every rank after the last row: its own checkpoint; where it ran, and its peak of memory.

        Returns why that failed, or "".
        """
        gathered = self.world.gather_agents(np.array([self.world.rank]), seconds[None])
        here = [socket.gethostname(), usable_cpus(), torch.get_num_threads(), peak_bytes()]
        ranks = self.world.gather_json(here)
        attributes = {"ending/seconds": {"dimensions": ["rank", "phase"], "phase": list(PHASES)}}
        try:
            if ranks is not None:
                write_table(self.run_dir, "ending", {"ending/seconds": gathered} | _places(ranks), attributes)
                self._write_eras()  # what could not be written when an agent was cut off
        except StorageError as error:
            return str(error)
        return ""

    def _gather(self, rows: Rows) -> dict[str, NDArray[np.generic]]:
        rank = np.array([self.world.rank])
        arrays = {
            "rounds/round": np.array(rows.rounds),
            "rounds/loss": self._by_round(rows.losses),
            "rounds/payload_bytes": np.stack(rows.payload),
            "rounds/waiting_bytes": np.stack(rows.waiting),
            "ranks/round": np.array(rows.rounds),
            "ranks/slurm_restarts": np.full(len(rows.rounds), slurm_restarts(os.environ)),
            "ranks/seconds": self.world.gather_agents(rank, np.stack(rows.seconds)[None]).swapaxes(0, 1),
            "ranks/travel_seconds": self.world.gather_agents(rank, np.array([rows.travel])).swapaxes(0, 1),
            "ranks/sent_bytes": self.world.gather_agents(rank, np.stack(rows.sent)[None]).swapaxes(0, 1),
        }
        if rows.cluster:
            arrays["rounds/cluster"] = np.stack(rows.cluster)
        if rows.evaluated:
            arrays |= {
                "evaluations/round": np.array(rows.evaluated),
                "evaluations/accuracy": self._by_round(rows.accuracy),
                "evaluations/alignment_weight": self._by_round(rows.weights),
                "evaluations/consensus_distance": self._by_component(rows.distance),
            }
        if rows.widths:
            arrays["evaluations/widths"] = self._by_round(rows.widths)
        if rows.taken:
            arrays["evaluations/weights_taken"] = self._by_round(rows.taken)
        if rows.drift:
            arrays["evaluations/mean_drift"] = self._by_component(rows.drift)
        return arrays | self._gather_links(rows)

    def _of_all(self, ids: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values [A, ...] of the agents `ids` as rows of all that live here; nan for those that are away."""
        whole = np.full((len(self.ids), *values.shape[1:]), np.nan)
        whole[np.searchsorted(self.ids, ids)] = values
        return whole

    def _by_round(self, rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """[A_local, ...] per round to [R, A, ...] over all agents."""
        return self.world.gather_agents(self.ids, np.stack(rows, axis=1)).swapaxes(0, 1)

    def _by_component(self, distances: Sequence[Mapping[Component, float]]) -> NDArray[np.float64]:
        """Distances per evaluation as [E, component]; nan for components of other eras."""
        table = [[distance.get(component, np.nan) for component in self.components] for distance in distances]
        return np.array(table, np.float64)

    def _by_slice(self, counts: Iterable[Mapping[str, int]]) -> NDArray[np.int64]:
        """Bytes by slice [S] over the links of all graphs, wherever the agents are."""
        total: Counter[str] = Counter()
        for counted in counts:
            total.update(counted)
        return np.array([total[name] for name in self.slice_names], np.int64)

    def _gather_links(self, rows: Rows) -> dict[str, NDArray[np.generic]]:
        mine = [[self.world.rank, peer, name, size] for (peer, name), size in sorted(rows.links.items())]
        table = np.array(list(chain(*(self.world.gather_json(mine) or []))), np.int64).reshape(-1, 4)
        columns = ("source", "destination", "slice", "bytes")
        last_round = np.full(len(table), rows.rounds[-1])
        return {"links/last_round": last_round} | {f"links/{name}": table[:, k] for k, name in enumerate(columns)}

    def _attributes(self, rows: Rows) -> dict[str, dict[str, list[str]]]:
        terms, names = list(LOSS_TERMS), self.slice_names
        attributes = {
            "rounds/loss": {"dimensions": ["round", "agent", "term"], "term": terms},
            "rounds/payload_bytes": {"dimensions": ["round", "slice"], "slice": names},
            "rounds/waiting_bytes": {"dimensions": ["round", "slice"], "slice": names},
            "ranks/seconds": {"dimensions": ["round", "rank", "phase"], "phase": list(PHASES)},
            "ranks/travel_seconds": {"dimensions": ["round", "rank"]},
            "ranks/slurm_restarts": {"dimensions": ["round"]},
            "ranks/sent_bytes": {"dimensions": ["round", "rank", "slice"], "slice": names},
        }
        if rows.cluster:
            attributes["rounds/cluster"] = {"dimensions": ["round", "agent"]}
        return attributes | (self._evaluation_attributes(rows) if rows.evaluated else {})

    def _evaluation_attributes(self, rows: Rows) -> dict[str, dict[str, list[str]]]:
        component = {"dimensions": ["evaluation", "component"], "component": [name for name, _ in self.components]}
        attributes = {
            "evaluations/accuracy": {
                "dimensions": ["evaluation", "agent", "split", "weighting", "prediction"],
                "split": list(SPLITS),
                "weighting": list(WEIGHTINGS),
                "prediction": list(prediction_names(list(self.plan.shapes))),
            },
            "evaluations/alignment_weight": {"dimensions": ["evaluation", "agent"]},
            "evaluations/consensus_distance": component,
        }
        if rows.widths:
            attributes["evaluations/widths"] = self._width_attributes()
        if rows.taken:
            dimensions = ["evaluation", "agent", "slice", "statistic"]
            taken = {"dimensions": dimensions, "slice": self.personal, "statistic": list(STATISTICS)}
            attributes["evaluations/weights_taken"] = taken
        if rows.drift:
            attributes["evaluations/mean_drift"] = component
        return attributes

    def _width_attributes(self) -> dict[str, list[str]]:
        dimensions = ["evaluation", "agent", "modality", "type"]
        return {"dimensions": dimensions, "modality": list(self.plan.shapes), "type": list(SLICE_TYPES)}


def _places(ranks: Sequence[tuple[str, list[int], int, int]]) -> dict[str, NDArray[np.generic]]:
    """Data sets [rank] from host, cores, threads and peak of memory of every rank.

    A host has the cores that any of its ranks may use: where ranks are bound to cores, none may use all.
    """
    cores: dict[str, set[int]] = {}
    for host, cpus, _, _ in ranks:
        cores.setdefault(host, set()).update(cpus)
    return {
        "ending/host": np.array([host for host, _, _, _ in ranks]),
        "ending/host_cores": np.array([len(cores[host]) for host, _, _, _ in ranks]),
        "ending/threads": np.array([threads for _, _, threads, _ in ranks]),
        "ending/peak_bytes": np.array([peak for _, _, _, peak in ranks]),
    }
