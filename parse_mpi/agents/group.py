"""AgentGroup: everything that the agents of one rank own, on one device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parse_mpi.agents.engines import LoopEngine, StackedEngine
from parse_mpi.agents.optimisers import Sgd, guarded_step
from parse_mpi.agents.rows import SliceRows
from parse_mpi.agents.samples import AgentSamples
from parse_mpi.data.sampler import Sampler
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
        self.optimiser = Sgd(plan.job.train.optimiser)
        self.slices = self._allocate(ghosts)
        self._fill_initial_values()
        ids = np.array([agent.id for agent in self.agents], np.int64)
        self.ids: NDArray[np.int64] = ids
        self.sampler = Sampler(plan.sizes()[ids], ids, plan.job.train.batch_size, plan.job.seed)
        stacked = plan.job.engine == "stacked" or (plan.job.engine == "auto" and plan.job.mode == "fast")
        self.engine = (StackedEngine if stacked else LoopEngine)(plan, self.agents, self.slices, device)
        index_of = {agent.id: k for k, agent in enumerate(self.agents)}
        self._guarded = [
            (rows, torch.tensor([index_of[i] for i in rows.agents.tolist()], device=device))
            for rows in self.slices.values()
        ]
        self.steps = 0

    def local_step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step of every agent; returns loss terms [A, T] and finite bool [A].

        An agent whose loss or gradient is not finite keeps its parameters and optimiser state (design: a bad row is
        never sent or saved).
        """
        position, mask = (torch.from_numpy(a).to(self.device) for a in self.sampler.batch(self.steps))
        for rows in self.slices.values():
            rows.gradients.zero_()
        losses = self.engine.gradients(self.samples, position, mask)
        finite = torch.isfinite(losses).all(1)
        guarded_step(self.optimiser, self._guarded, finite)
        self.steps += 1
        return losses, finite

    def _allocate(self, ghosts: Mapping[str, int]) -> dict[str, SliceRows]:
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
                    state=dict.fromkeys(self.optimiser.state, self.plan.layouts[spec.name].width),
                )
        return slices

    def _fill_initial_values(self) -> None:
        for blueprint in dict.fromkeys(agent.blueprint for agent in self.agents):
            members = [agent for agent in self.agents if agent.blueprint == blueprint]
            values = dict(self.plan.network(members[0], self.plan.job.seed).named_parameters())
            ids = [agent.id for agent in members]
            for rows in self.slices.values():
                for row in np.flatnonzero(np.isin(rows.agents, ids)):
                    rows.fill(int(row), values)
