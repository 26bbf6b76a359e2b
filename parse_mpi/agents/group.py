"""AgentGroup: everything that the agents of one rank own, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.alignment import AlignmentWeights
from parse_mpi.agents.balance import Balanced, TrainingBalance
from parse_mpi.agents.engines import LoopEngine, StackedEngine
from parse_mpi.agents.local_optimisers import RowOptimiser
from parse_mpi.agents.optimisers import guarded_step, slice_optimisers
from parse_mpi.agents.personal import PersonalAggregation, weight_state
from parse_mpi.agents.rows import MAPS, SliceRows
from parse_mpi.agents.samples import AgentSamples
from parse_mpi.data.sampler import LabelledSampler, make_sampler
from parse_mpi.methods.base import SliceSpec
from parse_mpi.model.widths import widths_of
from parse_mpi.plan import Plan
from parse_mpi.population import Agent


def local_order(plan: Plan, rank: int) -> list[Agent]:
    """The rank's agents as their rows stand: by blueprint, then id, so that agents of one blueprint are consecutive."""
    order = {agent.blueprint: k for k, agent in enumerate(plan.models)}
    return sorted(plan.agents_on(rank), key=lambda agent: (order[agent.blueprint], agent.id))


class AgentGroup:
    """The agents of a rank: slice rows, engine, optimiser and samples.

    agents: in the order of `local_order`; every [A] array and tensor here follows it.
    steps: local steps done so far, which is the position in every agent's stream of batches.
    """

    def __init__(self, plan: Plan, rank: int, ghosts: Mapping[str, int], samples: AgentSamples, device: torch.device):
        self.plan = plan
        self.agents = local_order(plan, rank)
        self.device = device
        self.samples = samples
        optimisers = slice_optimisers(plan.job.train, plan.slices)
        self.slices = self._allocate(ghosts, optimisers)
        self._fill_initial_values()
        ids = np.array([agent.id for agent in self.agents], np.int64)
        self.ids: NDArray[np.int64] = ids
        self.sampler = make_sampler(plan.job, plan.sizes()[ids], ids)
        stacked = plan.job.engine == "stacked" or (plan.job.engine == "auto" and plan.job.mode == "fast")
        self.engine = (StackedEngine if stacked else LoopEngine)(plan, self.agents, self.slices, device)
        base = [plan.alignment_weights[agent.modalities] for agent in self.agents]
        self.alignment = AlignmentWeights(base, plan.method.schedule, getattr(torch, plan.job.dtype), device)
        index_of = {agent.id: k for k, agent in enumerate(self.agents)}
        # Every slice with its optimiser and the local index of the agent in each row.
        self._trained = [
            (optimisers[name], rows, torch.tensor([index_of[i] for i in rows.agents.tolist()], device=device))
            for name, rows in self.slices.items()
        ]
        resting = [not plan.method.learns(agent.modalities) for agent in self.agents]
        self.resting = torch.tensor(resting, dtype=torch.bool, device=device)
        self.personal = self._make_personal()
        balanced = [(made, rows, agent) for made, rows, agent in self._trained if isinstance(made, Balanced)]
        self.balance = TrainingBalance(balanced, len(self.agents), getattr(torch, plan.job.dtype), device)
        self.steps = 0

    def local_steps(self, poll: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """The local steps of one round: mean loss terms [A, T], and finite bool [A] over all of them.

        poll: called after every piece of work, for whatever has to go on meanwhile.
        """
        for optimiser, rows, _ in self._trained:
            optimiser.before_round(rows)
        steps = [self.local_step(poll) for _ in range(self.plan.job.train.local_steps)]
        return torch.stack([loss for loss, _ in steps]).mean(0), torch.stack([ok for _, ok in steps]).all(0)

    def rehearse(self, poll: Callable[[], None]) -> None:
        """The work of a round's local steps without its effect: gradients are computed and dropped."""
        for _ in range(self.plan.job.train.local_steps):
            self._gradients(self.steps, poll)

    def before_send(self) -> None:
        """Before the rows of a round travel."""
        for optimiser, rows, _ in self._trained:
            optimiser.before_send(rows)

    def before_mix(self) -> None:
        """After the local steps of a round, before its rows are mixed."""
        self.balance.measure()
        if self.personal:
            self.personal.hold()

    def personalise(self) -> None:
        """Where agents take only a part of what mixing made of their rows: learn which, and take it."""
        if self.personal:
            self.personal.take(self._rounds(self.steps) - 1, self._classification_gradients)

    def after_mix(self) -> None:
        """After the rows of a round are mixed."""
        for optimiser, rows, _ in self._trained:
            optimiser.after_mix(rows)
        self.plan.method.after_mix({name: rows.local for name, rows in self.slices.items()}, self._rounds(self.steps))

    def widths(self) -> NDArray[np.float64]:
        """Positions of the slices of every modality of the data, [A, M, 3] by type; nan where an agent lacks it.

        Only of jobs with adaptive widths.
        """
        found = np.full((len(self.agents), len(self.plan.shapes), 3), np.nan)
        total = self.plan.job.method.slices.widest
        column = {f"widths[{m}]": k for k, m in enumerate(self.plan.shapes)}
        for _, rows, agent in self._trained:
            if rows.name in column:
                found[agent.cpu(), column[rows.name]] = widths_of(rows.local.double().cpu().numpy(), total)
        return found

    def local_step(self, poll: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
        """One optimiser step of every agent; returns loss terms [A, T] and finite bool [A].

        An agent whose loss or gradient is not finite keeps its parameters and optimiser state (design: a bad row is
        never sent or saved), and so does one that does not learn, whose loss terms are nan.
        """
        round_index, step = divmod(self.steps, self.plan.job.train.local_steps)
        if step == 0 and self.alignment.measures(round_index):
            position, mask = self._batch(self.steps)
            self.alignment.observe(self.engine.gradient_norms(self.samples, position, mask))
        losses = self._gradients(self.steps, poll)
        finite = torch.isfinite(losses).all(1) | self.resting
        guarded_step(self._trained, finite, self.resting)
        self.steps += 1
        return losses, finite

    def _gradients(self, step: int, poll: Callable[[], None]) -> Tensor:
        """Fill the gradient rows for the batch of a step; loss terms [A, T]."""
        self._forget_gradients()
        weights = self.alignment.current(self._rounds(step))
        return self.engine.gradients(self.samples, *self._batch(step), weights, poll)

    def _classification_gradients(self, position: Tensor, mask: Tensor) -> Tensor:
        """The same without the alignment term for batches [A, B] of its own, on the device; losses [A]."""
        self._forget_gradients()
        return self.engine.gradients(self.samples, position, mask, None, lambda: None)[:, 0]

    def _forget_gradients(self) -> None:
        for rows in self.slices.values():
            rows.gradients.zero_()

    def _rounds(self, steps: int) -> int:
        """How many rounds so many local steps are."""
        return steps // self.plan.job.train.local_steps

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Positions int64 [A, B] and mask bool [A, B] of a step, on the device."""
        position, mask = (torch.from_numpy(a).to(self.device) for a in self.sampler.batch(step))
        return position, mask

    def take_over(self, old: AgentGroup) -> None:
        """Go on where the group of the era before stopped: rows and optimiser state of every slice still held.

        What only the new optimiser remembers begins at zero, and everything where a stage of the method does.
        """
        self.steps = old.steps
        job = self.plan.job
        anew = self.plan.start in job.method.stages(job.train.rounds)
        for name, rows in self.slices.items():
            if name in old.slices:
                before, known = old.slices[name], old.slices[name].matrices()
                _, mine, theirs = np.intersect1d(rows.agents, before.agents, return_indices=True)
                for key, matrix in rows.matrices().items():
                    if key == "parameters" or (key in known and key != MAPS and not anew):
                        matrix[torch.from_numpy(mine)] = known[key][torch.from_numpy(theirs)]
        _, mine, theirs = np.intersect1d(self.ids, old.ids, return_indices=True)
        for key, values in self.alignment.state.items():
            values[torch.from_numpy(mine)] = old.alignment.state[key][torch.from_numpy(theirs)]

    def _allocate(self, ghosts: Mapping[str, int], optimisers: Mapping[str, RowOptimiser]) -> dict[str, SliceRows]:
        dtype = getattr(torch, self.plan.job.dtype)
        slices = {}
        for spec in self.plan.slices:
            holders = set(spec.holders)
            held = [agent.id for agent in self.agents if agent.id in holders]
            if held:
                slices[spec.name] = SliceRows(
                    spec.name,
                    self.plan.layouts[spec.name],
                    held,
                    ghosts.get(spec.name, 0),
                    dtype,
                    self.device,
                    copies=self.plan.copies(spec.name),
                    lasting=not spec.camps,
                    apart=self.plan.job.train.order == "consensus",
                    state=self._state(spec, optimisers[spec.name]),
                )
        return slices

    def _state(self, spec: SliceSpec, optimiser: RowOptimiser) -> dict[str, int]:
        """What rows of a slice remember beside their parameters: columns by name."""
        width, columns = self.plan.layouts[spec.name].width, self.plan.map_columns(spec.name)
        maps = {MAPS: columns} if columns else {}
        return optimiser.state(width) | weight_state(self.plan.method, spec, width) | maps

    def _make_personal(self) -> PersonalAggregation | None:
        """What agents take of means, where they do not take all of it."""
        held = {spec.name for spec in self.plan.slices if spec.personal}
        slices = [(rows, agent) for _, rows, agent in self._trained if rows.name in held]
        if not slices:
            return None
        labels = self.samples.y.cpu().numpy()
        sampler = LabelledSampler(self.plan.job, labels, self.plan.sizes()[self.ids], self.ids)
        return PersonalAggregation(self.plan.method.weights, slices, sampler)

    def _fill_initial_values(self) -> None:
        alike: dict[object, list[Agent]] = {}
        for agent in self.agents:
            alike.setdefault(agent.blueprint if self.plan.method.common_start else agent.id, []).append(agent)
        for members in alike.values():
            values = dict(self.plan.network(members[0], self.plan.job.seed).named_parameters())
            ids = [agent.id for agent in members]
            for rows in self.slices.values():
                for row in np.flatnonzero(np.isin(rows.agents, ids)):
                    rows.fill(int(row), values)
