"""Collects what a round produced and writes it as metrics segments (docs/file-formats.md lists the data sets).

Arrays by agent are the same on any rank count; what depends on ranks lies in the groups `ranks` and `links`.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.group import AgentGroup
from parse_mpi.data.dataset import Dataset
from parse_mpi.errors import StorageError
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.world import World
from parse_mpi.measures.accuracy import WEIGHTINGS
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import SPLITS, components
from parse_mpi.run.phases import PHASES
from parse_mpi.storage.metrics import write_segment, write_table


class Recorder:
    """Buffers rows of metrics on every rank; `flush` gathers them and rank 0 writes one segment."""

    def __init__(self, world: World, plan: Plan, group: AgentGroup, run_dir: Path, prediction_names: tuple[str, ...]):
        self.world = world
        self.plan = plan
        self.group = group
        self.run_dir = run_dir
        self.slice_names = [spec.name for spec in plan.slices]
        self.component_names = [name for name, _ in components(plan)]
        self.prediction_names = list(prediction_names)
        self._clear()

    def add_round(
        self, done: int, losses: Tensor, seconds: NDArray[np.float64], exchanges: list[GraphExchange]
    ) -> None:
        """After `done` finished rounds: losses [A, T] of the local agents, seconds [phase] and what was sent."""
        self._rounds.append(done)
        self._losses.append(losses.double().cpu().numpy())
        self._seconds.append(seconds)
        sent: Counter[str] = Counter()
        for exchange in exchanges:
            for name, by_peer in exchange.sent_bytes().items():
                for peer, size_bytes in by_peer.items():
                    sent[name] += size_bytes
                    self._links[peer, self.slice_names.index(name)] += size_bytes
        self._sent.append(np.array([sent[name] for name in self.slice_names], np.int64))
        self._payload.append(payload_bytes(self.plan, done - 1))

    def add_evaluation(self, done: int, accuracy: NDArray[np.float64], distance: NDArray[np.float64]) -> None:
        """Accuracy [A, split, weighting, prediction] of the local agents and consensus distance [component]."""
        self._evaluated.append(done)
        self._accuracy.append(accuracy)
        self._distance.append(distance)

    def flush(self) -> str:
        """Write everything since the last flush as one segment; all ranks call it together.

        Returns why that failed, or "": the rows then wait in memory for the next flush, and nothing is lost yet.
        """
        if not self._rounds:
            return ""
        arrays, failure = self._gather(), ""
        if self.world.rank == 0:
            try:
                write_segment(self.run_dir, self._rounds[0], self._rounds[-1], arrays, self._attributes())
            except StorageError as error:
                failure = str(error)
        failure = str(self.world.broadcast_json(failure))
        if not failure:
            self._clear()
        return failure

    def write_tables(self, dataset: Dataset) -> None:
        """The static tables of agents and slices; rank 0 only."""
        plan = self.plan
        histogram = np.zeros((len(plan.agents), plan.class_count), np.int64)
        for agent in plan.agents:
            histogram[agent.id] = np.bincount(dataset.labels[plan.samples[agent.id]], minlength=plan.class_count)
        arrays = {
            "agents/id": np.arange(len(plan.agents)),
            "agents/kind": np.array([agent.kind for agent in plan.agents]),
            "agents/class_histogram": histogram,
            "slices/name": np.array(self.slice_names),
            "slices/graph": np.array([spec.graph for spec in plan.slices]),
            "slices/parameters": np.array([plan.layouts[name].width for name in self.slice_names]),
            "slices/holders": np.array([len(spec.holders) for spec in plan.slices]),
        }
        attributes = {"agents": {"class_names": list(dataset.class_names), "modalities": list(plan.shapes)}}
        write_table(self.run_dir, "plan", arrays, attributes)

    def write_ending(self, seconds: NDArray[np.float64]) -> str:
        """Seconds [phase] of every rank after the last row: its own checkpoint. Returns why that failed, or ""."""
        gathered = self.world.gather_agents(np.array([self.world.rank]), seconds[None])
        attributes = {"ending/seconds": {"dimensions": ["rank", "phase"], "phase": list(PHASES)}}
        try:
            if self.world.rank == 0:
                write_table(self.run_dir, "ending", {"ending/seconds": gathered}, attributes)
        except StorageError as error:
            return str(error)
        return ""

    def _clear(self) -> None:
        self._rounds: list[int] = []
        self._losses: list[NDArray[np.float64]] = []
        self._seconds: list[NDArray[np.float64]] = []
        self._sent: list[NDArray[np.int64]] = []
        self._payload: list[NDArray[np.int64]] = []
        self._evaluated: list[int] = []
        self._accuracy: list[NDArray[np.float64]] = []
        self._distance: list[NDArray[np.float64]] = []
        self._links: Counter[tuple[int, int]] = Counter()

    def _gather(self) -> dict[str, NDArray[np.generic]]:
        rank = np.array([self.world.rank])
        ids = self.group.ids
        arrays = {
            "rounds/round": np.array(self._rounds),
            "rounds/loss": self._by_round(ids, self._losses),
            "rounds/payload_bytes": np.stack(self._payload),
            "ranks/round": np.array(self._rounds),
            "ranks/seconds": self.world.gather_agents(rank, np.stack(self._seconds)[None]).swapaxes(0, 1),
            "ranks/sent_bytes": self.world.gather_agents(rank, np.stack(self._sent)[None]).swapaxes(0, 1),
        }
        if self._evaluated:
            arrays |= {
                "evaluations/round": np.array(self._evaluated),
                "evaluations/accuracy": self._by_round(ids, self._accuracy),
                "evaluations/consensus_distance": np.stack(self._distance),
            }
        return arrays | self._gather_links()

    def _by_round(self, ids: NDArray[np.int64], rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """[A_local, ...] per round to [R, A, ...] over all agents."""
        return self.world.gather_agents(ids, np.stack(rows, axis=1)).swapaxes(0, 1)

    def _gather_links(self) -> dict[str, NDArray[np.generic]]:
        mine = [[self.world.rank, peer, name, size] for (peer, name), size in sorted(self._links.items())]
        table = np.array(list(chain(*(self.world.gather_json(mine) or []))), np.int64).reshape(-1, 4)
        columns = ("source", "destination", "slice", "bytes")
        last_round = np.full(len(table), self._rounds[-1])
        return {"links/last_round": last_round} | {f"links/{name}": table[:, k] for k, name in enumerate(columns)}

    def _attributes(self) -> dict[str, dict[str, list[str]]]:
        terms, names = list(LOSS_TERMS), self.slice_names
        return {
            "rounds/loss": {"dimensions": ["round", "agent", "term"], "term": terms},
            "rounds/payload_bytes": {"dimensions": ["round", "slice"], "slice": names},
            "ranks/seconds": {"dimensions": ["round", "rank", "phase"], "phase": list(PHASES)},
            "ranks/sent_bytes": {"dimensions": ["round", "rank", "slice"], "slice": names},
        } | (self._evaluation_attributes() if self._evaluated else {})

    def _evaluation_attributes(self) -> dict[str, dict[str, list[str]]]:
        return {
            "evaluations/accuracy": {
                "dimensions": ["evaluation", "agent", "split", "weighting", "prediction"],
                "split": list(SPLITS),
                "weighting": list(WEIGHTINGS),
                "prediction": self.prediction_names,
            },
            "evaluations/consensus_distance": {
                "dimensions": ["evaluation", "component"],
                "component": self.component_names,
            },
        }


def payload_bytes(plan: Plan, round_index: int) -> NDArray[np.int64]:
    """Bytes that agents send each other in a round, by slice [S]: rows over directed links, wherever the agents are."""
    links = {name: len(graph.at(round_index).neighbours) for name, graph in plan.graphs.items()}
    return np.array(
        [links.get(s.graph, 0) * plan.layouts[s.name].width * plan.item_bytes for s in plan.slices], np.int64
    )
