"""The reference: PARSE as anyone would write it first, with nothing of parse_mpi's engines, rows or exchange.

A plain module and a torch optimiser per agent, one agent after another on its true batch, the losses of PyTorch, and
mixing as a dense matrix product over all agents' parameters.
"""

import numpy as np
import torch
from torch.nn import functional

from parse_mpi.data.dataset import TRAIN
from parse_mpi.data.sampler import Sampler


class PlainParse:
    """All agents of a plan in one process; `step` is one round of one local step."""

    def __init__(self, plan, dataset):
        self.plan = plan
        self.job = plan.job
        self.dtype = getattr(torch, self.job.dtype)
        self.inputs = self._standardised(dataset)
        self.labels = torch.from_numpy(dataset.labels)
        self.networks, self.optimisers, self.samplers = [], [], []
        o = self.job.train.optimiser
        for agent in plan.agents:
            network = plan.network(agent, self.job.seed).to(self.dtype)
            self.networks.append(network)
            self.optimisers.append(
                torch.optim.SGD(network.parameters(), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
            )
            sizes, ids = np.array([len(plan.samples[agent.id])]), np.array([agent.id])
            self.samplers.append(Sampler(sizes, ids, self.job.train.batch_size, self.job.seed))

    def round(self, index):
        """H local steps of every agent, then mixing; returns the last total loss of every agent."""
        steps = range(index * self.job.train.local_steps, (index + 1) * self.job.train.local_steps)
        losses = [self._local_step(agent, step) for step in steps for agent in self.plan.agents]
        self._mix(index)
        return losses[-len(self.plan.agents) :]

    def parameters(self, name):
        """float64 [holders, P] of one slice, by ascending id, in the order of the network's parameters."""
        spec = next(s for s in self.plan.slices if s.name == name)
        return np.stack([self._row(i, spec).detach().double().numpy() for i in spec.holders])

    def _standardised(self, dataset):
        """Moments over all holders' samples together, as NumPy gives them."""
        inputs = {}
        for m, x in dataset.modalities.items():
            held = np.concatenate([self.plan.samples[a.id] for a in self.plan.agents if m in a.modalities])
            assert set(held) <= set(dataset.indices(TRAIN))
            mean, std = x[held].astype(np.float64).mean(0), x[held].astype(np.float64).std(0)
            scale = np.maximum(std, 0.1 * np.sqrt(np.square(std).mean()))
            inputs[m] = torch.from_numpy((x - mean.astype(np.float32)) / scale.astype(np.float32)).to(self.dtype)
        return inputs

    def _local_step(self, agent, step):
        position, mask = self.samplers[agent.id].batch(step)
        index = self.plan.samples[agent.id][position[0][mask[0]]]
        y = self.labels[index]
        network, optimiser = self.networks[agent.id], self.optimisers[agent.id]
        out = network({m: self.inputs[m][index] for m in agent.modalities})
        by_type = [logits.mean(0) for logits in out.logits.values()]
        loss = functional.cross_entropy(torch.stack(by_type).mean(0), y)
        loss = (
            loss
            + torch.stack(
                [torch.stack([functional.cross_entropy(h, y) for h in heads]).mean() for heads in out.logits.values()]
            ).mean()
        )
        if len(agent.modalities) > 1:
            loss = loss + self.job.method.beta * self._alignment(out.z)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def _alignment(self, z):
        """Cosine hard negatives, no label mask: InfoNCE as a cross-entropy with the positive on the diagonal."""
        r, u, s = (z[t] for t in ("redundant", "unique", "synergistic"))
        terms = []
        for m, n in [(m, n) for m in range(len(r)) for n in range(len(r)) if m != n]:
            near = functional.cosine_similarity(r[m].unsqueeze(1), r[n].unsqueeze(0), dim=-1)
            hard = [functional.cosine_similarity(r[m], other, dim=-1) for other in (u[m], u[n], s[m], s[n])]
            logits = torch.cat([near, torch.stack(hard, 1)], 1) / self.job.method.temperature
            terms.append(functional.cross_entropy(logits, torch.arange(len(near))))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def _mix(self, index):
        for spec in self.plan.slices:
            if not spec.graph:
                continue
            dense = torch.from_numpy(self.plan.graphs[spec.graph].at(index).dense()).to(self.dtype)
            rows = dense @ torch.stack([self._row(i, spec) for i in spec.holders])
            for i, row in zip(spec.holders, rows, strict=True):
                self._write(i, spec, row)

    def _named(self, i, spec):
        return [p for name, p in self.networks[i].named_parameters() if name.startswith(spec.parameters)]

    def _row(self, i, spec):
        return torch.cat([p.reshape(-1) for p in self._named(i, spec)])

    def _write(self, i, spec, row):
        start = 0
        for p in self._named(i, spec):
            p.copy_(row[start : start + p.numel()].view_as(p))
            start += p.numel()
