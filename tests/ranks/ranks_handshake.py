"""Inside ranks: neighbours tell each other their modalities, and newcomers of a slice start from a neighbour's row."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from small_jobs import write_dataset, write_job

from parse_mpi.agents.rows import SliceRows
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import LaunchError
from parse_mpi.exchange.adoption import adopt, donors
from parse_mpi.exchange.handshake import shake_hands
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.plan import Plan, make_plan
from parse_mpi.seeding import stream

WORLD = World(MPI.COMM_WORLD.Dup())
KINDS = (["a"], ["b", "c"], ["a", "c"], ["a", "b", "c"])
TOPOLOGIES = (
    {"kind": "ring"},
    {"kind": "random-gossip"},
    {"kind": "one-peer-exponential"},
    {"kind": "erdos-renyi", "probability": 0.4, "scope": "induced", "allow_disconnected": True},
)
EVENTS = [
    {"kind": "gain", "round": 2, "agents": [0, 1], "modality": "b"},
    {"kind": "lose", "round": 2, "agents": [4], "modality": "a"},
    {"kind": "leave", "round": 4, "agents": [7, 2]},
    {"kind": "join", "round": 6, "agents": [7]},
    {"kind": "gain", "round": 6, "agents": [4], "modality": "b"},
]

pytestmark = pytest.mark.mpi


def make(changes: dict[str, Any], seed: int = 0) -> Plan:
    """The plan of 8 agents with three modalities, which lie on any ranks; rank_of is drawn from the seed."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(Path(folder) / "abc.h5")
        base = {"agents": [{"modalities": kind, "count": 2} for kind in KINDS], "data": {"source": {"hdf5": str(data)}}}
        jobfile = load_job(write_job(Path(folder), base | changes))
        plan = make_plan(jobfile, load_dataset(jobfile.job.data, 0), WORLD.size)
    rank_of = stream(seed, "rank of").integers(0, WORLD.size, len(plan.agents))
    for era in plan.eras:
        object.__setattr__(era, "hosts", lambda: rank_of)
    return plan


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda topology: topology["kind"])
def test_every_rank_hears_of_the_remote_neighbours_of_its_agents(topology: dict[str, Any]) -> None:
    for seed in range(2):
        for plan in make({"topology": topology, "events": EVENTS}, seed).eras:
            here = plan.rank_of == WORLD.rank
            expected = {}
            for graph in plan.graphs.values():
                for sender, receiver in graph.links().tolist():
                    if here[receiver] and not here[sender]:
                        expected[sender] = plan.agents[sender].modalities
            assert shake_hands(WORLD, plan) == expected


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("wrong", range(WORLD.size))
@pytest.mark.parametrize("how", ["its agents", "its job"])
def test_a_rank_with_another_plan_is_told_on_all_ranks(wrong: int, how: str) -> None:
    """Also where its graphs have other links, so that it waits for words that nobody says, or is told more."""
    plan = make({"topology": {"kind": "complete"}})
    if wrong == WORLD.rank:
        kinds = [*KINDS[:2], ["b"], KINDS[3]]
        other = make({"topology": {"kind": "complete"}, "agents": [{"modalities": kind, "count": 2} for kind in kinds]})
        plan = replace(plan, agents=other.agents) if how == "its agents" else other
    with pytest.raises(LaunchError, match=r"agents 4, 5 tell .*is not what .*job says\.\nStart all ranks"):
        shake_hands(WORLD, plan)


def test_newcomers_start_from_the_row_of_a_neighbour_that_held_the_slice() -> None:
    """To the last bit, on any placement; all other rows stay."""
    adopted = 0
    for topology in TOPOLOGIES:
        for seed in range(2):
            plan = make({"topology": topology, "events": EVENTS}, seed)
            for before, after in zip(plan.eras[:-1], plan.eras[1:], strict=True):
                slices = rows(after, seed)
                was = everything(after, slices)
                pairs = donors(before, after)
                check_donors(before, after, pairs)
                adopt(WORLD, before, after, slices)
                for name, agent, donor in pairs:
                    was[name][agent] = was[name][donor]
                assert everything(after, slices) == was
                adopted += len(pairs)
    assert adopted > 20


def check_donors(before: Plan, after: Plan, pairs: list[tuple[str, int, int]]) -> None:
    """A pair for each newcomer that has a neighbour who held the slice, in some round, and for nobody else."""
    held = {spec.name: set(spec.holders) for spec in before.slices}
    found = {(name, agent): donor for name, agent, donor in pairs}
    for spec in after.slices:
        links = after.graphs[spec.graph].links().tolist()
        for agent in spec.holders:
            candidates = {s for s, r in links if r == agent and s in held.get(spec.name, set())}
            new = agent not in held.get(spec.name, set())
            assert ((spec.name, agent) in found) == (new and bool(candidates))
            assert found.pop((spec.name, agent), min(candidates, default=-1)) in candidates | {-1}
    assert not found


def test_donors_do_not_depend_on_the_placement() -> None:
    drawn = [make({"topology": {"kind": "complete"}, "events": EVENTS}, seed) for seed in range(2)]
    assert donors(drawn[0], drawn[0].later[0]) == donors(drawn[1], drawn[1].later[0]) != []


def rows(plan: Plan, seed: int) -> dict[str, SliceRows]:
    """This rank's rows, with values that no two agents share."""
    slices = {}
    for spec in plan.slices:
        held = [i for i in spec.holders if plan.rank_of[i] == WORLD.rank]
        if held:
            layout = plan.layouts[spec.name]
            slices[spec.name] = SliceRows(spec.name, layout, held, 0, torch.float32, torch.device("cpu"))
            for k, agent in enumerate(held):
                values = stream(seed, spec.name, agent).normal(size=layout.width)
                slices[spec.name].local[k] = torch.from_numpy(values)
    return slices


def everything(plan: Plan, slices: dict[str, SliceRows]) -> dict[str, dict[int, bytes]]:
    """Slice -> agent -> the bits of its row, on every rank."""
    found = {}
    for spec in plan.slices:
        mine = slices.get(spec.name)
        width = plan.layouts[spec.name].width
        ids = mine.agents if mine else np.empty(0, np.int64)
        local = mine.local.numpy() if mine else np.empty((0, width), np.float32)
        gathered = WORLD.gather_agents(ids, local)
        found[spec.name] = {i: row.tobytes() for i, row in zip(spec.holders, gathered, strict=True)}
    return found
