"""Inside ranks: messages and bytes that the cost model counts from the plan are those that real rounds send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from small_jobs import make_trainer

from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.sheaf import SheafExchange
from parse_mpi.exchange.world import World
from parse_mpi.scaling.loads import counted_rounds, rank_loads

WORLD = World(MPI.COMM_WORLD.Dup())
TWO_NODES = np.arange(WORLD.size) // 2  # pretended: ranks 0 and 1 on the first

JOBS: dict[str, dict[str, Any]] = {
    "ring": {},
    "torus of several kinds": {
        "topology": {"kind": "torus"},
        "data": {"source": {"digits": {"cut": "quadrants"}}},
        "agents": [
            {"modalities": ["top_left", "top_right"], "count": 5},
            {"modalities": ["top_left", "bottom_left"], "count": 4},
        ],
    },
    "a cycle": {"topology": {"kind": "one-peer-exponential"}},
    "drawn anew": {"topology": {"kind": "random-gossip"}},
    "a budget": {"exchange": {"budget_bytes_per_link": 900}},
    "maps": {"method": {"name": "sheaf-dmfl", "slices": None}},
    "two copies travel": {"train": {"order": "consensus", "optimiser": {"name": "gradient-tracking"}}},
}

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_loads_are_what_rounds_send(changes: dict[str, Any], tmp_path: Path) -> None:
    trainer, plan, _ = make_trainer(tmp_path, changes, world=WORLD)
    counted = dict.fromkeys(("messages_within", "bytes_within", "messages_between", "bytes_between"), 0.0)
    rounds = counted_rounds(plan)
    for round_index in range(rounds):
        trainer.train_round(round_index)
        for exchange in trainer.now.exchanges:
            for peer, messages in _messages(exchange):
                counted[f"messages_{_where(peer)}"] += messages / rounds
            for by_peer in exchange.sent_bytes().values():
                for peer, size_bytes in by_peer.items():
                    counted[f"bytes_{_where(peer)}"] += size_bytes / rounds
    loads = rank_loads(plan, plan.rank_of, TWO_NODES)
    told = {name: getattr(loads, name)[WORLD.rank] for name in counted}
    trainer.close()
    assert told == pytest.approx(counted, rel=1e-12)
    assert loads.agents[WORLD.rank] == len(plan.agents_on(WORLD.rank))


def _messages(exchange: Any) -> list[tuple[int, int]]:
    """Ranks that the last round sent rows to, and how many messages."""
    if isinstance(exchange, SheafExchange):
        assert exchange._now is not None
        routes = [exchange._now.route]
    else:
        assert isinstance(exchange, GraphExchange)
        routes = [flight.route for flight in exchange.flights]
    return [(int(peer), 1) for route in routes for peer in route.send_to]


def _where(peer: int) -> str:
    return "within" if TWO_NODES[peer] == TWO_NODES[WORLD.rank] else "between"
