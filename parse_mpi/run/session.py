"""One launch of a run: build or resume it, train, and leave it on disk so that it can be read and continued."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parse_mpi.agents.group import AgentGroup, local_order
from parse_mpi.agents.samples import AgentSamples, Standardisation
from parse_mpi.data.dataset import Dataset
from parse_mpi.data.normalise import moments, standardise
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import EXIT_OK, ParseMpiError, StorageError
from parse_mpi.exchange.devices import oversubscription, seat_lines, take_seat, usable_cores
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.routing import ghost_bound
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import JobFile, changed_keys, dump_job, load_job
from parse_mpi.methods.base import Agent
from parse_mpi.plan import Plan, make_plan
from parse_mpi.run.display import Display
from parse_mpi.run.evaluation import Evaluator
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.provenance import add_launch, versions
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.snapshot import restore
from parse_mpi.run.trainer import Trainer
from parse_mpi.storage.checkpoint import load_newest, open_checkpoint
from parse_mpi.storage.metrics import consolidate
from parse_mpi.storage.rundir import RunDirectory, RunState
from parse_mpi.storage.write import write_text

LOST_END = "the checkpoint of the last round could not be written; the same command trains the missing rounds again"


@dataclass(frozen=True)
class Request:
    """What the command line asks for. stop_after: leave after this round as if asked to stop; None: go to the end."""

    jobfile: JobFile
    out: Path
    fresh: bool
    stop_after: int | None
    command: Sequence[str]


def run_job(world: World, request: Request) -> RunState:
    """Start or resume the run on all ranks and train; returns the state that was written to state.json.

    Raises ParseMpiError on every rank alike for all that a user can mend.
    """
    job = request.jobfile.job
    stop = StopRequest()
    stop.listen()
    use_threads(job.mode)
    dataset = load_dataset(job.data, job.seed)
    plan = make_plan(request.jobfile, dataset, world.size)
    world.require_equal("job and data (their digest)", plan.digest)
    world.require_equal("installed versions", ", ".join(f"{k} {v}" for k, v in versions().items()))
    device, seats = take_seat(world, job.device, len(plan.agents_on(world.rank)))

    run = RunDirectory(request.out)
    display = Display(world.rank, run.log_dir, plan)
    first_round = _prepare(world, run, request, plan, display)
    display.start(seat_lines(seats), oversubscription(seats), first_round, run.path)
    if job.mode == "exact" and device.type == "cuda":
        display.warn("mode: exact is proven on CPUs; a GPU may choose other kernels, and so other bits, by rank count")
    if request.stop_after is not None and first_round >= request.stop_after:
        display.say(f"{run.path}: stands at round {first_round}, which is not before --stop-after {request.stop_after}")
        return RunState(round=first_round, rounds=job.train.rounds, status="stopped", exit_code=EXIT_OK)
    if first_round >= job.train.rounds:
        display.say(f"{run.path}: all {job.train.rounds} rounds are done; --fresh starts over, train.rounds adds more")
        return _finished(world, run, job.train.rounds, display)

    trainer = build_trainer(world, plan, dataset, run.path, device, display)
    if first_round:
        restore(trainer.group, open_checkpoint(run.path, first_round))
    if world.rank == 0:
        add_launch(run.provenance_path, request.command, seats, first_round, job.seed)
        trainer.recorder.write_tables(dataset)
    return _train(world, run, request, trainer, stop, display, first_round)


def use_threads(mode: str) -> None:
    """One compute thread in exact mode, whose bits depend on it; otherwise OMP_NUM_THREADS, or this rank's cores."""
    if mode == "exact":
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def build_trainer(
    world: World, plan: Plan, dataset: Dataset, run_dir: Path, device: torch.device, display: Display
) -> Trainer:
    """Samples, agents, exchanges and everything around them for this rank, at round 0."""
    agents = local_order(plan, world.rank)
    scaling = agree_on_scaling(world, plan, dataset, agents)
    samples = AgentSamples(plan, agents, dataset, scaling, device)
    ghosts = {
        spec.name: ghost_bound(plan.graphs[spec.graph], plan.rank_of, world.rank) for spec in plan.slices if spec.graph
    }
    group = AgentGroup(plan, world.rank, ghosts, samples, device)
    exchanges = [GraphExchange(world, plan, graph, group.slices, tag) for tag, graph in enumerate(plan.graphs.values())]
    evaluator = Evaluator(plan, group, dataset, scaling)
    recorder = Recorder(world, plan, group, run_dir, evaluator.names)
    header: dict[str, str | int] = {"job_digest": plan.digest, "seed": plan.job.seed, "ranks": world.size}
    return Trainer(world, plan, run_dir, group, exchanges, evaluator, recorder, header, display.warn)


def agree_on_scaling(world: World, plan: Plan, dataset: Dataset, agents: Sequence[Agent]) -> Standardisation:
    """Mean and scale per feature from all holders' training samples; only sums leave an agent."""
    mean, scale = {}, {}
    for m, shape in plan.shapes.items():
        holders = [agent for agent in agents if m in agent.modalities]
        sums = np.zeros((len(holders), 2, *shape))
        counts = np.zeros((len(holders), 1))
        for k, agent in enumerate(holders):
            counts[k], sums[k, 0], sums[k, 1] = moments(dataset.modalities[m][plan.samples[agent.id]])
        ids, exact = np.array([agent.id for agent in holders], np.int64), plan.job.mode == "exact"
        total = world.sum_over_agents(ids, sums, exact)
        count = int(world.sum_over_agents(ids, counts, exact)[0])
        if count:  # a modality that nobody holds has nothing to scale
            mean[m], scale[m] = standardise(count, total[0], total[1])
    return Standardisation(mean, scale)


def _prepare(world: World, run: RunDirectory, request: Request, plan: Plan, display: Display) -> int:
    """Make or check the run directory on rank 0; returns the round to go on from on every rank."""
    first_round, failure = 0, ""
    if world.rank == 0:
        try:
            first_round = _prepare_directory(run, request, plan, display)
        except ParseMpiError as error:
            failure = str(error)
    agreed: tuple[int, str] = world.broadcast_json([first_round, failure])
    if agreed[1]:
        raise StorageError(agreed[1])
    return agreed[0]


def _prepare_directory(run: RunDirectory, request: Request, plan: Plan, display: Display) -> int:
    job = request.jobfile.job
    if request.fresh:
        moved = run.fresh()
        if moved:
            display.say(f"the earlier run now lies in {moved}")
    if not run.exists():
        run.create()
        write_text(run.job_path, dump_job(job))
        return 0
    changed = changed_keys(load_job(run.job_path).job, job)
    if changed:
        listed = "\n  ".join(changed)
        raise StorageError(
            f"{run.path} holds a run of another job; changed:\n  {listed}\n"
            "Choose another --out, take the changes back, or start over with --fresh (the old run is kept aside)."
        )
    run.create()
    write_text(run.job_path, dump_job(job))
    checkpoint, rejections = load_newest(run.path)
    for rejection in rejections:
        display.warn(f"checkpoint {rejection.path.name} is not used: {rejection.reason}")
    if checkpoint is None:
        if rejections:
            raise StorageError(
                f"{run.path}: none of {len(rejections)} checkpoints can be trusted; starting at round 0 would lose "
                "what was learnt. Restore one from a backup, or start over with --fresh (the old run is kept aside)."
            )
        return 0
    if checkpoint.header.get("job_digest") != plan.digest:
        raise StorageError(
            f"{checkpoint.path} was trained on other data than data.source holds now.\n"
            "Bring the data back, choose another --out, or start over with --fresh (the old run is kept aside)."
        )
    return checkpoint.round_index


def _finished(world: World, run: RunDirectory, rounds: int, display: Display) -> RunState:
    """All rounds are done: one metrics file, the final state, on every rank."""
    state = RunState(round=rounds, rounds=rounds, status="finished", exit_code=EXIT_OK)
    if world.rank == 0:
        consolidate(run.path)
        run.write_state(state)
        display.result(run.path)
    world.barrier()
    return state


def _train(
    world: World,
    run: RunDirectory,
    request: Request,
    trainer: Trainer,
    stop: StopRequest,
    display: Display,
    first_round: int,
) -> RunState:
    rounds, state = trainer.plan.job.train.rounds, RunState(round=0, rounds=0, status="running")

    def keep(done: int, **changes: Any) -> None:
        nonlocal state
        state = RunState(round=done, rounds=rounds, **{"status": "running"} | changes)
        if world.rank == 0:
            run.write_state(state)

    last_round = min(rounds, request.stop_after or rounds)
    keep(first_round)
    try:
        reason = trainer.train(first_round, last_round, stop, display.progress, keep)
    except ParseMpiError as error:
        keep(state.round, status="failed", reason=str(error), exit_code=error.exit_code)
        raise
    finally:
        display.stop()
    if state.round == rounds:
        return _finished(world, run, rounds, display)
    if not reason and state.round < last_round:
        keep(state.round, status="stopped", reason=LOST_END, exit_code=StorageError.exit_code)
    else:
        keep(state.round, status="stopped", reason=reason or f"--stop-after {last_round}", exit_code=EXIT_OK)
    if world.rank == 0:
        consolidate(run.path)
        display.result(run.path)
    world.barrier()
    return state
