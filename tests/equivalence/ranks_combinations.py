"""Inside three ranks: drawn jobs end with the same bits on one, two and three ranks, and moving between them.

Two ranks train together while the third one trains alone; then all train together; then the job is trained in parts,
each on another number of ranks than the part before.
"""

from __future__ import annotations

import os
from itertools import pairwise, permutations
from pathlib import Path

import pytest
import torch
from mpi4py import MPI
from real_runs import differences, result
from small_jobs import Quiet

from parse_mpi.data.sources import load_dataset
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import JobFile, load_job
from parse_mpi.plan import make_plan
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import build_trainer, use_threads
from parse_mpi.storage.checkpoint import load_newest
from parse_mpi.storage.saver import Saver

ALL = World(MPI.COMM_WORLD.Dup())
PART = World(MPI.COMM_WORLD.Split(color=ALL.rank == 2))  # ranks 0 and 1 together, and rank 2 alone
JOBS = sorted(Path(os.environ["DRAWN_JOBS"]).glob("*.yaml"))
ORDERS = list(permutations((1, 2, 3)))

pytestmark = pytest.mark.mpi


def world_of(ranks: int) -> World | None:
    """The ranks of this launch that train where `ranks` of them shall, on each of them."""
    if ranks == ALL.size:
        return ALL
    return PART if PART.size == ranks else None


def train(jobfile: JobFile, ranks: int, out: Path, last: int | None = None) -> None:
    """Go on with the run in `out` up to round `last`, or to its end; ranks that don't take part return at once."""
    if (world := world_of(ranks)) is None:
        return
    job = jobfile.job
    dataset = load_dataset(job.data, job.seed)
    plan = make_plan(jobfile, dataset, world.size)
    checkpoint, rejected = load_newest(out)
    assert not rejected
    out.mkdir(exist_ok=True)
    world.barrier()  # nobody saves before all have seen what there is
    done = checkpoint.round_index if checkpoint else 0
    trainer = build_trainer(
        world, plan, dataset, Saver(world, out, job.checkpoint.keep), torch.device("cpu"), Quiet(), done
    )
    if checkpoint:
        assert checkpoint.header["job_digest"] == plan.digest
        trainer.restore(checkpoint)
    trainer.train(done, last or job.train.rounds, StopRequest())
    trainer.close()


@pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])
def test_any_ranks_and_any_restart_give_the_same_bits(path: Path) -> None:
    use_threads("exact")
    jobfile = load_job(path)
    rounds, number = jobfile.job.train.rounds, JOBS.index(path)
    whole = {ranks: path.with_suffix(f".on-{ranks}") for ranks in (1, 2, 3)}
    for ranks, out in whole.items():
        train(jobfile, ranks, out)
    order, parts = ORDERS[number % len(ORDERS)], path.with_suffix(".parts")
    stops = (1 + number % (rounds - 2), rounds - 1, rounds)
    for ranks, last in zip(order, stops, strict=True):
        ALL.barrier()
        train(jobfile, ranks, parts, last)
    ALL.barrier()
    for first, second in pairwise((whole[1], whole[2], whole[3], parts)):
        assert differences(result(first), result(second)) == [], f"{first.name}, {second.name}; parts on {order} ranks"
