"""One launch of a run: build or resume it, train, and leave it on disk so that it can be read and continued."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
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
from parse_mpi.job import Job
from parse_mpi.jobfile import JobFile
from parse_mpi.plan import Plan, make_plan
from parse_mpi.run.assembly import assemble
from parse_mpi.run.display import Display
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.provenance import add_launch, versions
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.resume import first_round, owned
from parse_mpi.run.scaling import encoder_sources, write_scaling
from parse_mpi.run.trainer import Listener, Trainer
from parse_mpi.storage.checkpoint import open_checkpoint
from parse_mpi.storage.metrics import consolidate
from parse_mpi.storage.owner import Owner
from parse_mpi.storage.parallel import require_parallel_hdf5
from parse_mpi.storage.rundir import RunDirectory, RunState
from parse_mpi.storage.saver import Saver

LOST_END = "the checkpoint of the last round could not be written; the same command trains the missing rounds again"
UNPROVEN_BITS = "mode: exact is proven on CPUs; a GPU may choose other kernels, and so other bits, by rank count"


@dataclass(frozen=True)
class Request:
    """What the command line asks for. stop_after: leave after this round as if asked to stop; None: go to the end."""

    jobfile: JobFile
    out: Path
    fresh: bool
    stop_after: int | None
    command: Sequence[str]


def run_job(world: World, request: Request, stop: StopRequest) -> RunState:
    """Start or resume the run on all ranks and train; returns the state that was written to state.json.

    Raises ParseMpiError on every rank alike for all that a user can mend.
    """
    job = request.jobfile.job
    use_threads(job.mode)
    dataset = load_dataset(job.data, job.seed, readers=world.ranks_on_host())
    plan = make_plan(request.jobfile, dataset, world.size, world.nodes())
    world.require_equal("job and data (their digest)", plan.digest)
    # This builds the networks: one that is too large for the memory is refused before a run directory is made.
    widths = {name: layout.width for era in plan.eras for name, layout in era.layouts.items()}
    world.require_equal("parameters of each slice", str(widths))
    world.require_equal("which rank hosts which agent (its digest)", sha256(plan.rank_of.tobytes()).hexdigest())
    world.require_equal("installed versions", ", ".join(f"{k} {v}" for k, v in versions().items()))
    if job.checkpoint.shards == "single":
        require_parallel_hdf5(world)
    device, seats = take_seat(world, job.device, len(plan.agents_on(world.rank)))

    run = RunDirectory(request.out)
    display = Display(world.rank, run.log_dir, plan)
    stop.say = display.say
    with owned(world, run, stop, display) as owner:
        done = first_round(world, owner, plan, request.fresh, display)
        display.start(seat_lines(seats), [*caveats(plan, dataset), *oversubscription(seats)], done, run.path)
        if job.mode == "exact" and device.type == "cuda":
            display.warn(UNPROVEN_BITS)
        if done >= (request.stop_after or job.train.rounds):
            display.say(f"{run.path}: round {done} of {job.train.rounds} is done, nothing is left; --fresh starts over")
            return _end(world, owner, _final_state(job.train.rounds, done, done, ""), display)

        saver = Saver(
            world, run.path, job.checkpoint.keep,
            announce=lambda saved: run.write_state(_running(saved, job)),
            still_ours=owner.require if owner else lambda: None,  # asked on rank 0 alone
            single=job.checkpoint.shards == "single",
        )  # fmt: skip
        trainer = build_trainer(world, plan, dataset, saver, device, display, done)
        if done:
            trainer.restore(open_checkpoint(run.path, done))
        if world.rank == 0:
            add_launch(run.provenance_path, request.command, seats, done, job.seed)
            trainer.recorder.write_tables(dataset)
            write_scaling(run.path, trainer.now.inputs.scaling, encoder_sources(era.agents for era in plan.eras))
        last_round = min(job.train.rounds, request.stop_after or job.train.rounds)
        return _train(world, owner, trainer, done, last_round, stop, display)


def use_threads(mode: str) -> None:
    """One compute thread in exact mode, whose bits depend on it; otherwise OMP_NUM_THREADS, or this rank's cores."""
    if mode == "exact":
        torch.set_num_threads(1)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def build_trainer(
    world: World, plan: Plan, dataset: Dataset, saver: Saver, device: torch.device, listener: Listener, done: int = 0
) -> Trainer:
    """Everything around the agents of this rank, as they are at their initial values in the era of round `done`."""
    inputs = Inputs(plan, dataset, agree_on_scaling(world, plan, dataset))
    assembly = assemble(world, plan.at(max(done - 1, 0)), inputs, device)
    recorder = Recorder(world, plan, saver.run_dir)
    header: dict[str, str | int] = {"job_digest": plan.digest, "seed": plan.job.seed, "ranks": world.size}
    return Trainer(world, plan, assembly, saver, recorder, header, listener)


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
    owner: Owner | None,
    trainer: Trainer,
    done: int,
    last_round: int,
    stop: StopRequest,
    display: Display,
) -> RunState:
    """Train, with state.json up to date after every checkpoint and whatever happens."""
    job = trainer.plan.job
    rounds = job.train.rounds
    if owner is not None:
        owner.run.write_state(_running(done, job))
    try:
        with closing(trainer.saver):  # its thread must not write in a directory that is another launch's by then
            reason = trainer.train(done, last_round, stop)
    except ParseMpiError as error:
        if owner is not None:
            with suppress(StorageError):  # the error that ended the run is the one to tell
                code, why = error.exit_code, str(error)
                _leave(owner, RunState(round=trainer.saved, rounds=rounds, status="failed", reason=why, exit_code=code))
        raise
    finally:
        display.stop()
    trainer.close()
    return _end(world, owner, _final_state(rounds, trainer.saved, last_round, reason), display)


def _running(saved: int, job: Job) -> RunState:
    return RunState(round=saved, rounds=job.train.rounds, status="running")


def _final_state(rounds: int, saved: int, last_round: int, reason: str) -> RunState:
    """The state of a run that ended as agreed, with its newest checkpoint at round `saved`."""
    if saved == rounds:
        return RunState(round=saved, rounds=rounds, status="finished", exit_code=EXIT_OK)
    if saved < last_round and not reason:
        return RunState(round=saved, rounds=rounds, status="stopped", reason=LOST_END, exit_code=StorageError.exit_code)
    why = reason or f"--stop-after {last_round}"
    return RunState(round=saved, rounds=rounds, status="stopped", reason=why, exit_code=EXIT_OK)


def _end(world: World, owner: Owner | None, state: RunState, display: Display) -> RunState:
    """Leave the directory and show the table. Every rank waits for rank 0."""
    if state.status == "stopped":
        display.say(f"stopped at round {state.round} of {state.rounds}: {state.reason}")
    if owner is not None:
        _leave(owner, state)
        display.result(owner.run.path)
    world.barrier()
    return state


def _leave(owner: Owner, state: RunState) -> None:
    """The state first, then what is derived: one metrics file. Raises StorageError, also where all this is not ours."""
    owner.require()
    owner.run.write_state(state)
    consolidate(owner.run.path)
