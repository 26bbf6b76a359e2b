"""One launch of a run: build or resume it, train, and leave it on disk so that it can be read and continued."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from parse_mpi.agents.samples import Inputs, Standardisation
from parse_mpi.caveats import caveats
from parse_mpi.data.arrival import arrived
from parse_mpi.data.dataset import Dataset
from parse_mpi.data.normalise import moments, standardise
from parse_mpi.data.sources import load_dataset
from parse_mpi.errors import EXIT_OK, ParseMpiError, StorageError
from parse_mpi.exchange.devices import oversubscription, seat_lines, take_seat
from parse_mpi.exchange.host import usable_cores
from parse_mpi.exchange.world import World
from parse_mpi.jobfile import JobFile
from parse_mpi.plan import Plan, make_plan
from parse_mpi.run.assembly import assemble
from parse_mpi.run.display import Display
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.provenance import add_launch, versions
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.resume import first_round
from parse_mpi.run.trainer import Listener, Trainer
from parse_mpi.storage.checkpoint import open_checkpoint
from parse_mpi.storage.metrics import consolidate
from parse_mpi.storage.rundir import RunDirectory, RunState

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
    dataset = load_dataset(job.data, job.seed, readers=world.ranks_on_host())
    plan = make_plan(request.jobfile, dataset, world.size)
    world.require_equal("job and data (their digest)", plan.digest)
    world.require_equal("installed versions", ", ".join(f"{k} {v}" for k, v in versions().items()))
    device, seats = take_seat(world, job.device, len(plan.agents_on(world.rank)))

    run = RunDirectory(request.out)
    display = Display(world.rank, run.log_dir, plan)
    done = first_round(world, run, plan, request.fresh, display)
    display.start(seat_lines(seats), [*caveats(plan, dataset), *oversubscription(seats)], done, run.path)
    if job.mode == "exact" and device.type == "cuda":
        display.warn("mode: exact is proven on CPUs; a GPU may choose other kernels, and so other bits, by rank count")
    if done >= (request.stop_after or job.train.rounds):
        display.say(f"{run.path}: round {done} of {job.train.rounds} is done, nothing is left; --fresh starts over")
        return _end(world, run, _final_state(job.train.rounds, done, done, ""), display)

    trainer = build_trainer(world, plan, dataset, run.path, device, display, done)
    if done:
        trainer.restore(open_checkpoint(run.path, done))
    if world.rank == 0:
        add_launch(run.provenance_path, request.command, seats, done, job.seed)
        trainer.recorder.write_tables(dataset)
    last_round = min(job.train.rounds, request.stop_after or job.train.rounds)
    return _train(world, run, trainer, done, last_round, stop, display)


def use_threads(mode: str) -> None:
    """One compute thread in exact mode, whose bits depend on it; otherwise OMP_NUM_THREADS, or this rank's cores."""
    if mode == "exact":
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def build_trainer(
    world: World, plan: Plan, dataset: Dataset, run_dir: Path, device: torch.device, listener: Listener, done: int = 0
) -> Trainer:
    """Everything around the agents of this rank, as they are at their initial values in the era of round `done`."""
    inputs = Inputs(plan, dataset, agree_on_scaling(world, plan, dataset))
    assembly = assemble(world, plan.at(max(done - 1, 0)), inputs, device)
    recorder = Recorder(world, plan, run_dir)
    header: dict[str, str | int] = {"job_digest": plan.digest, "seed": plan.job.seed, "ranks": world.size}
    return Trainer(world, plan, assembly, run_dir, recorder, header, listener)


def agree_on_scaling(world: World, plan: Plan, dataset: Dataset) -> Standardisation:
    """Mean and scale per feature from the samples that all who ever hold a modality have at the start.

    Only sums leave an agent.
    """
    mean, scale = {}, {}
    first = arrived(plan.sizes(), plan.job.data.stream, 0)
    for m, shape in plan.shapes.items():
        holders = sorted({a.id for era in plan.eras for a in era.agents_on(world.rank) if m in a.modalities})
        sums = np.zeros((len(holders), 2, *shape))
        counts = np.zeros((len(holders), 1))
        for k, i in enumerate(holders):
            counts[k], sums[k, 0], sums[k, 1] = moments(dataset.modalities[m], plan.samples[i][: first[i]])
        ids, exact = np.array(holders, np.int64), plan.job.mode == "exact"
        total = world.sum_over_agents(ids, sums, exact)
        count = int(world.sum_over_agents(ids, counts, exact)[0])
        if count:  # a modality that nobody holds has nothing to scale
            mean[m], scale[m] = standardise(count, total[0], total[1])
    return Standardisation(mean, scale)


def _train(
    world: World,
    run: RunDirectory,
    trainer: Trainer,
    done: int,
    last_round: int,
    stop: StopRequest,
    display: Display,
) -> RunState:
    """Train, with state.json up to date after every checkpoint and whatever happens."""
    rounds = trainer.plan.job.train.rounds
    saved = done

    def committed(round_index: int) -> None:
        nonlocal saved
        saved = round_index
        if world.rank == 0:
            run.write_state(RunState(round=saved, rounds=rounds, status="running"))

    committed(done)
    try:
        reason = trainer.train(done, last_round, stop, committed)
    except ParseMpiError as error:
        if world.rank == 0:
            with suppress(StorageError):  # the error that ended the run is the one to tell
                code, why = error.exit_code, str(error)
                run.write_state(RunState(round=saved, rounds=rounds, status="failed", reason=why, exit_code=code))
                consolidate(run.path)
        raise
    finally:
        display.stop()
    trainer.close()
    return _end(world, run, _final_state(rounds, saved, last_round, reason), display)


def _final_state(rounds: int, saved: int, last_round: int, reason: str) -> RunState:
    """The state of a run that ended as agreed, with its newest checkpoint at round `saved`."""
    if saved == rounds:
        return RunState(round=saved, rounds=rounds, status="finished", exit_code=EXIT_OK)
    if saved < last_round and not reason:
        return RunState(round=saved, rounds=rounds, status="stopped", reason=LOST_END, exit_code=StorageError.exit_code)
    why = reason or f"--stop-after {last_round}"
    return RunState(round=saved, rounds=rounds, status="stopped", reason=why, exit_code=EXIT_OK)


def _end(world: World, run: RunDirectory, state: RunState, display: Display) -> RunState:
    """The state first, then what is derived: one metrics file and the table. Every rank waits for rank 0."""
    if world.rank == 0:
        run.write_state(state)
        consolidate(run.path)
        display.result(run.path)
    world.barrier()
    return state
