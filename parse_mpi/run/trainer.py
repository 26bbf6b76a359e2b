"""The training loop: local steps, exchange and mixing, evaluation, records (method.md 1.6), round after round."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from parse_mpi.errors import NonFiniteError
from parse_mpi.exchange.progress import Progress, fastest_mode
from parse_mpi.exchange.world import World
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.plan import Plan
from parse_mpi.run.assembly import Assembly, succeed
from parse_mpi.run.consensus import consensus_distances
from parse_mpi.run.evaluation import SPLITS
from parse_mpi.run.phases import PhaseTimer
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.snapshot import restore, snapshot
from parse_mpi.storage.checkpoint import Checkpoint, save_checkpoint


@dataclass(frozen=True)
class RoundDone:
    """What a person is told after a round; where it was evaluated, means over all agents: loss and test accuracy."""

    round_index: int
    evaluated: tuple[float, float] | None = None


class Listener(Protocol):
    """Who is told how the training goes."""

    def progress(self, made: RoundDone) -> None: ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Trainer:
    """Everything that one rank needs to train. A round index counts finished rounds: the first round ends as 1."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        assembly: Assembly,
        run_dir: Path,
        recorder: Recorder,
        header: Mapping[str, str | int],
        listener: Listener,
    ):
        self.world = world
        self.now = assembly
        self.plan = plan
        self.run_dir = run_dir
        self.recorder = recorder
        self.header = header
        self.listener = listener
        self.timer = PhaseTimer(assembly.group.device)
        self.overlaps = self.plan.job.train.order == "consensus"
        self.progress = Progress("none")
        self.travel_s = self._sent_at = 0.0

    def train(self, first_round: int, last_round: int, stop: StopRequest, committed: Callable[[int], None]) -> str:
        """Train from `first_round` finished rounds up to `last_round`, the end of which is evaluated and saved.

        Returns "", or the request to stop that the ranks agreed on. committed: told after every checkpoint. Raises
        NonFiniteError on every rank when an agent's loss or gradient is not finite.
        """
        job = self.plan.job
        asked_to_stop = False
        self.choose_progress()
        for done in range(first_round + 1, last_round + 1):
            self.enter_era(done - 1)
            try:
                losses, asked_to_stop = self.train_round(done - 1, stop.raised)
            except NonFiniteError:
                self.flush()  # the rounds before the one that failed are those to look at
                raise
            self._reweigh(done)
            ends = asked_to_stop or done == last_round
            evaluated = self.evaluate(done, losses) if ends or done % job.evaluate.every == 0 else None
            self.recorder.add_round(done, self.now, losses, self.timer.take(), self.travel_s)
            if ends or done % job.checkpoint.every == 0:
                if self.save(done):
                    committed(done)
            elif evaluated:
                self.flush()
            self.listener.progress(RoundDone(done, evaluated))
            if asked_to_stop:
                break
        if failure := self.recorder.write_ending(self.timer.take()):
            self.listener.warn(failure)
        return str(next(filter(None, self.world.all_json(stop.reason)))) if asked_to_stop else ""

    def close(self) -> None:
        """Give the communicators back; all ranks call it together."""
        self.now.free()

    def choose_progress(self) -> None:
        """How rows are kept moving while agents learn: as the job says, or what is fastest here, measured."""
        mode: str = self.plan.job.exchange.progress if self.overlaps and self.world.size > 1 else "none"
        if mode == "auto":
            mode, seconds = fastest_mode(self.world, self.now.exchanges, self.now.group.rehearse)
            tried = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
            self.listener.say(f"exchange.progress: {mode} (a round's exchange beside its local steps took {tried})")
        self.progress = Progress(mode)

    def enter_era(self, round_index: int) -> None:
        """Where events of the job change who holds what, or who can talk to whom, from this round on: change it."""
        plan = self.plan.at(round_index)
        if plan is not self.now.plan:
            self.now = succeed(self.world, self.now, plan)
            for what in plan.what:
                self.listener.say(f"round {plan.start}: {what}")

    def train_round(self, round_index: int, stop_raised: bool) -> tuple[Tensor, bool]:
        """One round of the paper. Returns mean loss terms [A, T] and the agreed wish to stop.

        Adapt, then combine: the rows that agents have learnt travel. Consensus: the rows of the round's beginning
        travel while agents learn, and what they learnt is added to the mixture (method.md 1.6).
        """
        if self.overlaps:
            self._send(round_index)
        # Step 1: every agent takes H optimiser steps on its own samples.
        with self.timer("local_steps"), self.progress.during(self.now.exchanges):
            losses, finite = self.now.group.local_steps(self.progress.poll)
        flags = self.world.start_any_of([not bool(finite.all()), stop_raised])
        if not self.overlaps:
            self._send(round_index)
        # Step 2: every agent moves each of its slices towards its neighbours on that slice's graph.
        self._mix()
        # Step 3: the ranks agree whether to go on, before anything is saved.
        nonfinite, asked_to_stop = flags()
        if nonfinite:
            self._raise_nonfinite(round_index + 1, losses, finite)
        return losses, asked_to_stop

    def _send(self, round_index: int) -> None:
        """Rows that remote neighbours need start to travel, one neighbourhood exchange per graph."""
        with self.timer("pack"):
            for exchange in self.now.exchanges:
                exchange.start(round_index)
        self._sent_at = time.perf_counter()

    def _mix(self) -> None:
        """Neighbours are summed: first where all are local, then, when they have arrived, the remote ones too."""
        with self.timer("mix"):
            for exchange in self.now.exchanges:
                exchange.mix_interior()
        with self.timer("wait"):
            for exchange in self.now.exchanges:
                exchange.wait()
        self.travel_s = (self.progress.arrived_s or time.perf_counter()) - self._sent_at
        with self.timer("mix"):
            for exchange in self.now.exchanges:
                exchange.mix_boundary()
            self.now.group.after_mix()

    def _reweigh(self, done: int) -> None:
        """Under a budget with priorities, let the slices that differ most between their holders travel more."""
        exchange = self.plan.job.exchange
        if self.now.budget and exchange.turns == "priority" and done % exchange.reweigh_every == 0:
            self.now.budget.reweigh(consensus_distances(self.world, self.now.plan, self.now.group))

    def evaluate(self, done: int, losses: Tensor) -> tuple[float, float]:
        """Evaluate every agent and record it; returns mean loss and mean ensemble test accuracy over all agents."""
        with self.timer("evaluate"):
            group = self.now.group
            accuracy = self.now.evaluator.accuracy()
            distances = consensus_distances(self.world, self.now.plan, group)
            self.recorder.add_evaluation(done, self.now, accuracy, distances)
            test = accuracy[:, SPLITS.index("test"), 0, 0]
            mine = np.stack([losses[:, 0].double().cpu().numpy(), test], axis=1)
            loss, mean = self.world.gather_agents(group.ids, mine).mean(0)
        return float(loss), float(mean)

    def save(self, done: int) -> bool:
        """Write metrics and a checkpoint; False with a warning where that failed and training goes on from memory."""
        if not self.flush():
            return False
        with self.timer("checkpoint"):
            arrays = snapshot(self.now.group)
            weights = json.dumps(self.now.budget.weights if self.now.budget else {})
            header = {**self.header, "slice_weights": weights}
            record = save_checkpoint(self.world, self.run_dir, done, arrays, header, self.plan.job.checkpoint.keep)
        if not record.committed:
            self.listener.warn(f"round {done}: NO CHECKPOINT WRITTEN, training goes on from memory: {record.reason}")
        return record.committed

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give the agents of this rank, and the budget, the state that `save` put into a checkpoint."""
        restore(self.now.group, checkpoint)
        if self.now.budget:
            self.now.budget.weights = json.loads(str(checkpoint.header["slice_weights"]))

    def flush(self) -> bool:
        """Write the metrics since the last time; False with a warning where that failed."""
        with self.timer("record"):
            failure = self.recorder.flush()
        if failure:
            self.listener.warn(f"METRICS NOT WRITTEN, kept in memory until the next time: {failure}")
        return not failure

    def _raise_nonfinite(self, done: int, losses: Tensor, finite: Tensor) -> None:
        mine = []
        for k in torch.nonzero(~finite).flatten().tolist():
            terms = [term for t, term in enumerate(LOSS_TERMS) if not bool(torch.isfinite(losses[k, t]))]
            what = f"loss {', '.join(terms[1:] or terms)}" if terms else "gradient"
            mine.append(f"agent {self.now.group.agents[k].id} ({self.now.group.agents[k].kind}): {what}")
        found = [line for lines in self.world.all_json(mine) for line in lines]
        raise NonFiniteError(
            f"round {done}: not finite: {'; '.join(found[:6])}{' and more' if len(found) > 6 else ''}.\n"
            "These agents kept their last finite parameters, and the newest checkpoint is sound. Lower "
            "train.optimiser.lr or method.beta, or look for extreme values in the data, then start again with --fresh."
        )
