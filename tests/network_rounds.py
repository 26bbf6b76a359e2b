"""Inside ranks, one a host: rounds of training, or messages of a known size, and what they put on the wire.

    mpiexec ... python tests/network_rounds.py QUESTIONS

QUESTIONS, a JSON list of `{"row_mb": 1, "order": "consensus", "local_steps": 2, "rounds": 5}` and `{"messages": 8,
"message_bytes": 65536}`. Rank 0 prints the answers as one line of JSON, each a list by rank under every name.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI
from namespaces import sent_on_wire
from small_jobs import make_trainer

from parse_mpi.exchange.world import World
from parse_mpi.run.phases import PHASES

WARM_UP = 2
SETTLE_S = 0.3  # for acknowledgements that are still to come


def job(ranks, row_mb, order, local_steps):
    """Changes to the small job of the tests: a ring of two agents a rank, with two hidden layers so wide that a row has
    so many MB."""
    width = max(8, round((row_mb * 1e6 / 4) ** 0.5 / 8) * 8)
    return {
        "agents": [{"modalities": ["top"], "count": 2 * ranks}],
        "encoder": {"hidden": [width, width]},
        "train": {"order": order, "batch_size": 32, "local_steps": local_steps, "optimiser": {"lr": 0.01}},
        "exchange": {"progress": "thread"},
    }


def train(world, folder, row_mb, order, local_steps, rounds):
    """Rounds after a few that warm up: their seconds, [rank, round] each, and bytes in all of them, by rank."""
    trainer, _, _ = make_trainer(folder, job(world.size, row_mb, order, local_steps), world=world)
    trainer.choose_progress()
    for r in range(WARM_UP):
        trainer.train_round(r)
    times, sent, messages = [], 0, 0
    wire_before = settled_wire(world)
    for r in range(WARM_UP, WARM_UP + rounds):
        trainer.timer.take()
        world.barrier()
        start = time.perf_counter()
        trainer.train_round(r)
        seconds = time.perf_counter() - start
        phases = dict(zip(PHASES, trainer.timer.take().tolist(), strict=True))
        times.append([seconds, phases["local_steps"], phases["wait"], trainer.travel_s])
        for exchange in trainer.now.exchanges:
            sent += sum(sum(by_peer.values()) for by_peer in exchange.sent_bytes().values())
            messages += sum(len(flight.route.send_to) for flight in exchange.flights)
    wire = settled_wire(world) - wire_before
    trainer.close()
    names = ("round_s", "local_steps_s", "wait_s", "travel_s")
    told = dict(zip(names, np.array(times).T.tolist(), strict=True))
    return told | {"sent_bytes": sent, "messages": messages, "wire_bytes": wire}


def send(world, messages, message_bytes):
    """So many messages to the next rank, which waits for each: what a payload of known size costs on the wire."""
    following, previous = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    payload, place = np.ones(message_bytes, np.uint8), np.empty(message_bytes, np.uint8)
    world.comm.Sendrecv(payload, following, recvbuf=place, source=previous)  # connections are made once
    wire_before = settled_wire(world)
    for _ in range(messages):
        world.comm.Sendrecv(payload, following, recvbuf=place, source=previous)
    wire = settled_wire(world) - wire_before
    return {"sent_bytes": messages * message_bytes, "messages": messages, "wire_bytes": wire}


def settled_wire(world):
    """Bytes that this rank's host has sent, once nobody has anything on the way."""
    world.barrier()
    time.sleep(SETTLE_S)
    return sent_on_wire()


def main():
    torch.set_num_threads(1)
    world = World(MPI.COMM_WORLD)
    answers = []
    for question in json.loads(sys.argv[1]):
        with tempfile.TemporaryDirectory() as folder:
            told = send(world, **question) if "messages" in question else train(world, Path(folder), **question)
        by_rank = world.all_json(told)
        answers.append({name: [answer[name] for answer in by_rank] for name in told})
    if world.rank == 0:
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
