"""The training loop: local steps, exchange and mixing, evaluation, records (method.md 1.6), round after round."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from parse_mpi.errors import EvictedError, NonFiniteError
from parse_mpi.exchange.progress import Progress, fastest_mode
from parse_mpi.exchange.world import World
from parse_mpi.plan import Plan
from parse_mpi.run.assembly import Assembly, succeed
from parse_mpi.run.consensus import consensus_distances, mean_drifts
from parse_mpi.run.evaluation import SPLITS
from parse_mpi.run.final import close_look
from parse_mpi.run.nonfinite import Diverged, find_diverged, newly_broken, plan_without
from parse_mpi.run.phases import PhaseTimer
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.snapshot import Snapshot, on_first_rank, restore
from parse_mpi.run.summary import size_text
from parse_mpi.storage.checkpoint import Checkpoint
from parse_mpi.storage.saver import Saver, SaveRecord
from parse_mpi.storage.shard import AgentArray


@dataclass(frozen=True)
class RoundDone:
    """What a person is told after a round; where it was evaluated, means over all agents: loss and accuracy.

    The loss is of those who learn; the accuracy is that on the split which `evaluate.told` of the job names.
    """

    round_index: int
    evaluated: tuple[float, float] | None = None


class Listener(Protocol):
    """Who is told how the training goes."""

    def progress(self, made: RoundDone) -> None: ...

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


class Trainer:
    """Everything that one rank needs to train. A round index counts finished rounds: the first round ends as 1."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        assembly: Assembly,
        saver: Saver,
        recorder: Recorder,
        header: Mapping[str, str | int],
        listener: Listener,
    ):
        self.world = world
        self.now = assembly
        self.plan = plan
        self.saver = saver
        self.recorder = recorder
        self.header = header
        self.listener = listener
        self.timer = PhaseTimer(assembly.group.device)
        self.overlaps = self.plan.job.train.order == "consensus"
        self.progress = Progress("none")
        self.travel_s = self._sent_at = 0.0
        self.snapshot = Snapshot(assembly.group)
        self.node = world.on_host() if plan.job.checkpoint.by_node(world.size) else None
        self.stop = StopRequest()
        self.saved = 0

    def train(self, first_round: int, last_round: int, stop: StopRequest) -> str:
        """Train from `first_round` finished rounds up to `last_round`, the end of which is evaluated and saved.

        Returns "", or the request to stop that the ranks agreed on; `saved` is the round of the newest checkpoint then.
        Raises NonFiniteError on every rank when an agent diverges and the job says to stop, and EvictedError when
        another launch has taken the run directory over.
        """
        job = self.plan.job
        self.stop, self.saved, asked_to_stop = stop, first_round, False
        self.choose_progress()
        for done in range(first_round + 1, last_round + 1):
            self.enter_era(done - 1)
            try:
                losses, asked_to_stop = self.train_round(done - 1)
            except NonFiniteError:
                self.settle()
                self.save(done - 1, checkpoint=False)  # the rounds before the one that failed are those to look at
                self.settle()
                raise
            self._reweigh(done)
            ends = asked_to_stop or done == last_round
            evaluated = self.evaluate(done, losses) if ends or done % job.evaluate.every == 0 else None
            if done == job.train.rounds:
                with self.timer("evaluate"):
                    self.recorder.add_final(close_look(self.world, self.plan, self.now, done))
            self.recorder.add_round(done, self.now, losses, self.timer.take(), self.travel_s)
            if ends or evaluated or done % job.checkpoint.every == 0:
                self.save(done, checkpoint=ends or done % job.checkpoint.every == 0)
            self.listener.progress(RoundDone(done, evaluated))
            if asked_to_stop:
                break
        self.settle()
        if failure := self.recorder.write_ending(self.timer.take()):
            self.listener.warn(failure)
        return str(next(filter(None, self.world.all_json(stop.reason)))) if asked_to_stop else ""

    def close(self) -> None:
        """Give the communicators back; all ranks call it together."""
        self.now.free()
        if self.node is not None:
            self.node.free()

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
            self.settle()  # what is being written are copies of the era that ends
            self.now = succeed(self.world, self.now, plan)
            self.snapshot = Snapshot(self.now.group)
            for what in plan.what:
                self.listener.say(f"round {plan.start}: {what}")

    def train_round(self, round_index: int) -> tuple[Tensor, bool]:
        """One round of the paper. Returns mean loss terms [A, T] and the agreed wish to stop.

        Adapt, then combine: the rows that agents have learnt travel. Consensus: the rows of the round's beginning
        travel while agents learn, and what they learnt is added to the mixture (method.md 1.6).
        """
        if self.overlaps:
            self._send(round_index)
        # Step 1: every agent takes H optimiser steps on its own samples.
        with self.timer("local_steps"), self.progress.during(self.now.exchanges):
            losses, finite = self.now.group.local_steps(self.progress.poll)
        flags = self.world.start_any_of([not bool(finite.all()), self.stop.raised, self.saver.unfinished])
        if not self.overlaps:
            self._send(round_index)
        # Step 2: every agent moves each of its slices towards its neighbours on that slice's graph.
        self._mix()
        # Step 3: the ranks agree whether to go on, before anything is saved, and on what has been saved meanwhile.
        with self.timer("agree"):
            nonfinite, asked_to_stop, writing = flags()
        if not writing:
            self._advance()
        if nonfinite:
            self._lose(find_diverged(self.world, self.now.group, losses, finite, round_index + 1))
        return losses, asked_to_stop

    def _send(self, round_index: int) -> None:
        """Rows that remote neighbours need start to travel, one neighbourhood exchange per graph."""
        with self.timer("pack"):
            self.now.group.before_send()
            for exchange in self.now.exchanges:
                exchange.start(round_index)
        self._sent_at = time.perf_counter()

    def _mix(self) -> None:
        """Neighbours are summed: first where all are local, then, when they have arrived, the remote ones too."""
        with self.timer("mix"):
            self.now.group.before_mix()
            for exchange in self.now.exchanges:
                exchange.mix_interior()
        with self.timer("wait"):
            for exchange in self.now.exchanges:
                exchange.wait()
        self.travel_s = (self.progress.arrived_s or time.perf_counter()) - self._sent_at
        with self.timer("mix"):
            for exchange in self.now.exchanges:
                exchange.mix_boundary()
        with self.timer("local_steps"):
            self.now.group.personalise()
        with self.timer("mix"):
            self.now.group.after_mix()

    def _reweigh(self, done: int) -> None:
        """Under a budget with priorities, let the slices that differ most between their holders travel more."""
        exchange = self.plan.job.exchange
        if self.now.budget and exchange.turns == "priority" and done % exchange.reweigh_every == 0:
            self.now.budget.reweigh(consensus_distances(self.world, self.now.plan, self.now.group))

    def evaluate(self, done: int, losses: Tensor) -> tuple[float, float]:
        """Evaluate every agent and record it; returns means, as RoundDone has them, of the ensemble."""
        with self.timer("evaluate"):
            group = self.now.group
            accuracy = self.now.evaluator.accuracy()
            distances = consensus_distances(self.world, self.now.plan, group)
            drifts = mean_drifts(self.world, self.now.plan, group)
            self.recorder.add_evaluation(done, self.now, accuracy, distances, drifts)
            told = accuracy[:, SPLITS.index(self.plan.job.evaluate.told), 0, 0]
            mine = np.stack([losses[:, 0].double().cpu().numpy(), told], axis=1)
            known = self.world.gather_agents(group.ids, mine)
            learning = ~np.isnan(known[:, 0])  # others rest in this stage of the method
            loss = known[learning, 0].mean() if learning.any() else np.nan
        return float(loss), float(known[:, 1].mean())

    def save(self, done: int, checkpoint: bool) -> None:
        """Begin to write the metrics and, where asked for, a checkpoint; training goes on meanwhile.

        Metrics alone are not worth waiting for what is being written: they go with the next save.
        """
        if self.saver.active and not checkpoint:
            return
        self.settle()
        with self.timer("record"):
            segment = self.recorder.take()
        with self.timer("checkpoint"):
            weights = json.dumps(self.now.budget.weights if self.now.budget else {})
            isolated = json.dumps(self.plan.isolated)
            header = {**self.header, "slice_weights": weights, "isolated": isolated}
            self.saver.begin(done, self._state if checkpoint else None, header, segment)

    def settle(self) -> None:
        """Wait until what is being written is written."""
        with self.timer("checkpoint"):
            record = self.saver.finish()
        self._tell(record)

    def _advance(self) -> None:
        """The next step of what is being saved, now that no rank is writing."""
        with self.timer("checkpoint"):
            record = self.saver.advance()
        self._tell(record)

    def _state(self) -> list[AgentArray]:
        """Copies of what this rank is to write: of its own agents, or of all on its node."""
        arrays = self.snapshot.take()
        return arrays if self.node is None else on_first_rank(self.node, arrays)

    def _tell(self, record: SaveRecord | None) -> None:
        """Say how a save ended; a failure is a loud warning, and training goes on from memory."""
        if record is None:
            return
        self.recorder.settle(record.metrics_written)
        self.stop.save_took(record.seconds)
        at = f"round {record.round_index}"
        if record.evicted:
            raise EvictedError(f"{at}: {record.reason}")
        if record.committed:
            self.saved = record.round_index
            took = f"{record.seconds:.2f} s, training stood still for {1e3 * record.pause_seconds:.1f} ms of it"
            self.listener.note(f"{at}: checkpoint of {size_text(record.size_bytes)} in {took}")
        if record.checkpoint and not record.committed:
            self.listener.warn(f"{at}: NO CHECKPOINT WRITTEN, training goes on from memory: {record.reason}")
        elif not record.metrics_written:
            self.listener.warn(f"{at}: METRICS NOT WRITTEN, kept in memory until the next time: {record.reason}")
        elif record.reason:
            self.listener.warn(f"{at}: {record.reason}")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Give the agents of this rank, and the budget, the state that `save` put into a checkpoint."""
        if isolated := json.loads(str(checkpoint.header.get("isolated", "[]"))):
            listed = ", ".join(f"agent {agent} since round {done}" for done, agent in isolated)
            self.listener.warn(f"cut off before (train.on_nonfinite: isolate): {listed}")
            for done in sorted({done for done, _ in isolated}):  # one round after the other, as it happened
                self._follow(self.plan.without([(at, agent) for at, agent in isolated if at <= done]))
            self.enter_era(checkpoint.round_index - 1)
        restore(self.now.group, checkpoint)
        if self.now.budget:
            self.now.budget.weights = json.loads(str(checkpoint.header["slice_weights"]))

    def _lose(self, lost: Diverged) -> None:
        """Go on without agents that diverged, from the next round on.

        Raises NonFiniteError where the job says to stop instead, or where nobody is left.
        """
        plan = plan_without(self.plan, lost)
        self.listener.warn(f"{lost}. CUT OFF FROM NOW ON (train.on_nonfinite: isolate); the others go on.")
        for what in newly_broken(self.plan, plan, lost.done):
            self.listener.warn(f"{what}; agents in different components no longer learn from each other")
        self._follow(plan)
        if failure := self.recorder.write_eras():
            self.listener.warn(failure)

    def _follow(self, plan: Plan) -> None:
        """Take the plan of the same run with fewer agents; what changes does so in `enter_era`."""
        self.plan = plan
        self.recorder.follow(plan)
