"""Many agents on one machine: they train, and the memory they need is what `plan` said."""

import json
import sys

import pytest
from launch import run
from small_jobs import ROOT_JOBS

KINDS = ("agents.0.count", "agents.1.count", "agents.2.count")
MEASURE = """
import json, sys
from pathlib import Path
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import load_job
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.session import Request, run_job

job, out, result, *overrides = sys.argv[1:]
world = World.connect()
run_job(world, Request(load_job(Path(job), overrides), Path(out), False, None, []), StopRequest())
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
Path(f"{result}-{world.rank}").write_text(json.dumps(peak))
"""


def peaks_and_estimates(folder, job, overrides):
    """Measured peak bytes and the plan's RankMemory of both ranks, after a few rounds."""
    from parse_mpi.data.sources import load_dataset
    from parse_mpi.jobfile import load_job
    from parse_mpi.plan import make_plan
    from parse_mpi.studies.memory import first_routes, rank_memory

    overrides = ["train.rounds=5", *overrides]
    script = [sys.executable, "-c", MEASURE, job, folder / "run", folder / "peak", *overrides]
    outcome = run(2, list(map(str, script)), folder / "logs", limit_s=180)
    assert outcome.code == 0, outcome
    jobfile = load_job(job, overrides)
    dataset = load_dataset(jobfile.job.data, jobfile.job.seed)
    plan = make_plan(jobfile, dataset, 2)
    peaks = [json.loads((folder / f"peak-{rank}").read_text()) for rank in range(2)]
    return peaks, [rank_memory(plan, dataset, rank, first_routes(plan, rank)) for rank in range(2)]


def with_agents(folder, count):
    """The quickstart with `count` agents of each kind."""
    overrides = ["data.partition.min_per_agent=1", *(f"{key}={count}" for key in KINDS)]
    return peaks_and_estimates(folder, ROOT_JOBS / "quickstart.yaml", overrides)


def test_300_agents_on_2_ranks_need_the_memory_that_plan_says(tmp_path):
    few, few_estimates = with_agents(tmp_path / "few", 100)
    many, estimates = with_agents(tmp_path / "many", 250)
    for peak, estimate in zip(few + many, few_estimates + estimates, strict=True):
        print(f"peak {peak / 1e6:.0f} MB, estimate {estimate.total / 1e6:.0f} MB", estimate)
        assert estimate.total == pytest.approx(peak, rel=0.15)
    # What an agent beyond full stacks costs is its rows, gradients, optimiser state, ghosts and samples.
    for rank in range(2):
        agents = 3 * (250 - 100) / 2
        measured = (many[rank] - few[rank]) / agents
        counted = [
            e.rows + e.gradients + e.optimiser + e.checkpoint + e.exchange + e.data
            for e in (few_estimates[rank], estimates[rank])
        ]
        own = (counted[1] - counted[0]) / agents
        print(f"a further agent: measured {measured / 1e3:.0f} kB, its own {own / 1e3:.0f} kB")
        assert own * 0.8 <= measured <= own * 1.2


@pytest.mark.parametrize(
    "overrides",
    [["train.batch_size=256"], ["train.batch_size=512", "agents.2.count=20"], ["train.batch_size=100000"]],
    ids=["256", "512, the logits of many agents", "all samples"],
)
def test_large_batches_need_the_memory_that_plan_says(tmp_path, overrides):
    """The logits of the contrastive term grow with the square of the batch, up to that of all an agent's samples."""
    for peak, estimate in zip(*peaks_and_estimates(tmp_path, ROOT_JOBS / "pid.yaml", overrides), strict=True):
        print(f"peak {peak / 1e6:.0f} MB, estimate {estimate.total / 1e6:.0f} MB", estimate)
        assert estimate.total == pytest.approx(peak, rel=0.15)
