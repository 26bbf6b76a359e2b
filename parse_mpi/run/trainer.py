"""The training loop: local steps, exchange and mixing, evaluation, records (method.md 1.6), round after round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from parse_mpi.agents.group import AgentGroup
from parse_mpi.errors import NonFiniteError
from parse_mpi.exchange.neighbourhood import GraphExchange
from parse_mpi.exchange.world import World
from parse_mpi.methods.base import LOSS_TERMS
from parse_mpi.plan import Plan
from parse_mpi.run.evaluation import SPLITS, Evaluator, consensus_distances
from parse_mpi.run.phases import PhaseTimer
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.recorder import Recorder
from parse_mpi.run.snapshot import snapshot
from parse_mpi.storage.checkpoint import save_checkpoint


@dataclass(frozen=True)
class Progress:
    """What a person is told after a round; where it was evaluated, means over all agents: loss and test accuracy."""

    round_index: int
    evaluated: tuple[float, float] | None = None


class Trainer:
    """Everything that one rank needs to train. A round index counts finished rounds: the first round ends as 1."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        run_dir: Path,
        group: AgentGroup,
        exchanges: list[GraphExchange],
        evaluator: Evaluator,
        recorder: Recorder,
        header: Mapping[str, str | int],
        warn: Callable[[str], None],
    ):
        self.world = world
        self.plan = plan
        self.run_dir = run_dir
        self.group = group
        self.exchanges = exchanges
        self.evaluator = evaluator
        self.recorder = recorder
        self.header = header
        self.warn = warn
        self.timer = PhaseTimer(group.device)

    def train(
        self,
        first_round: int,
        last_round: int,
        stop: StopRequest,
        report: Callable[[Progress], None],
        committed: Callable[[int], None],
    ) -> str:
        """Train from `first_round` finished rounds up to `last_round`, the end of which is evaluated and saved.

        Returns "", or the request to stop that the ranks agreed on. report: told after every round; committed: after
        every checkpoint. Raises NonFiniteError on every rank when an agent's loss or gradient is not finite.
        """
        job = self.plan.job
        asked_to_stop = False
        for done in range(first_round + 1, last_round + 1):
            try:
                losses, asked_to_stop = self.train_round(done - 1, stop.raised)
            except NonFiniteError:
                self.flush()  # the rounds before the one that failed are those to look at
                raise
            ends = asked_to_stop or done == last_round
            evaluated = self.evaluate(done, losses) if ends or done % job.evaluate.every == 0 else None
            self.recorder.add_round(done, losses, self.timer.take(), self.exchanges)
            if ends or done % job.checkpoint.every == 0:
                if self.save(done):
                    committed(done)
            elif evaluated:
                self.flush()
            report(Progress(done, evaluated))
            if asked_to_stop:
                break
        if failure := self.recorder.write_ending(self.timer.take()):
            self.warn(failure)
        return str(next(filter(None, self.world.all_json(stop.reason)))) if asked_to_stop else ""

    def close(self) -> None:
        """Give the communicators back; all ranks call it together."""
        for exchange in self.exchanges:
            exchange.free()

    def train_round(self, round_index: int, stop_raised: bool) -> tuple[Tensor, bool]:
        """One round of the paper: adapt, then combine. Returns mean loss terms [A, T] and the agreed wish to stop."""
        # Step 1: every agent takes H optimiser steps on its own samples.
        with self.timer("local_steps"):
            steps = [self.group.local_step() for _ in range(self.plan.job.train.local_steps)]
            losses = torch.stack([loss for loss, _ in steps]).mean(0)
            finite = torch.stack([ok for _, ok in steps]).all(0)
        flags = self.world.start_any_of([not bool(finite.all()), stop_raised])
        # Step 2: rows that remote neighbours need start to travel, one neighbourhood exchange per graph.
        with self.timer("pack"):
            for exchange in self.exchanges:
                exchange.start(round_index)
        # Step 3: every agent moves each of its slices towards its neighbours on that slice's graph.
        with self.timer("mix"):
            for exchange in self.exchanges:
                exchange.mix_interior()
        with self.timer("wait"):
            for exchange in self.exchanges:
                exchange.wait()
        with self.timer("mix"):
            for exchange in self.exchanges:
                exchange.mix_boundary()
        # Step 4: the ranks agree whether to go on, before anything is saved.
        nonfinite, asked_to_stop = flags()
        if nonfinite:
            self._raise_nonfinite(round_index + 1, losses, finite)
        return losses, asked_to_stop

    def evaluate(self, done: int, losses: Tensor) -> tuple[float, float]:
        """Evaluate every agent and record it; returns mean loss and mean ensemble test accuracy over all agents."""
        with self.timer("evaluate"):
            accuracy = self.evaluator.accuracy()
            self.recorder.add_evaluation(done, accuracy, consensus_distances(self.world, self.plan, self.group))
            test = accuracy[:, SPLITS.index("test"), 0, 0]
            mine = np.stack([losses[:, 0].double().cpu().numpy(), test], axis=1)
            loss, mean = self.world.gather_agents(self.group.ids, mine).mean(0)
        return float(loss), float(mean)

    def save(self, done: int) -> bool:
        """Write metrics and a checkpoint; False with a warning where that failed and training goes on from memory."""
        if not self.flush():
            return False
        with self.timer("checkpoint"):
            arrays = snapshot(self.group)
            record = save_checkpoint(self.world, self.run_dir, done, arrays, self.header, self.plan.job.checkpoint.keep)
        if not record.committed:
            self.warn(f"round {done}: NO CHECKPOINT WRITTEN, training goes on from memory: {record.reason}")
        return record.committed

    def flush(self) -> bool:
        """Write the metrics since the last time; False with a warning where that failed."""
        with self.timer("record"):
            failure = self.recorder.flush()
        if failure:
            self.warn(f"METRICS NOT WRITTEN, kept in memory until the next time: {failure}")
        return not failure

    def _raise_nonfinite(self, done: int, losses: Tensor, finite: Tensor) -> None:
        mine = []
        for k in torch.nonzero(~finite).flatten().tolist():
            terms = [term for t, term in enumerate(LOSS_TERMS) if not bool(torch.isfinite(losses[k, t]))]
            what = f"loss {', '.join(terms[1:] or terms)}" if terms else "gradient"
            mine.append(f"agent {self.group.agents[k].id} ({self.group.agents[k].kind}): {what}")
        found = [line for lines in self.world.all_json(mine) for line in lines]
        raise NonFiniteError(
            f"round {done}: not finite: {'; '.join(found[:6])}{' and more' if len(found) > 6 else ''}.\n"
            "These agents kept their last finite parameters, and the newest checkpoint is sound. Lower "
            "train.optimiser.lr or method.beta, or look for extreme values in the data, then start again with --fresh."
        )
