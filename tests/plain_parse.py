"""The reference: PARSE as anyone would write it first, with nothing of parse_mpi's engines, rows or exchange.

A plain module and a torch optimiser per agent, one agent after another on its true batch, the losses of PyTorch, and
mixing as a dense matrix product over all agents' parameters.
"""

import numpy as np
import torch
from small_jobs import make_trainer
from torch.nn import functional

from parse_mpi.data.dataset import TRAIN
from parse_mpi.data.labels import known_labels
from parse_mpi.data.sampler import Sampler
from parse_mpi.seeding import stream


def largest_difference(tmp_path, changes, rounds, reference=None):
    """Of a slice after some rounds, relative Frobenius norm between parse_mpi and the reference, PARSE's by default."""
    trainer, plan, dataset = make_trainer(tmp_path, changes)
    plain = (reference or PlainParse)(plan, dataset)
    for k in range(rounds):
        trainer.enter_era(k)
        losses, _ = trainer.train_round(k)
        expected = plain.round(k)
        group = trainer.now.group
        if plan.job.train.local_steps == 1:
            np.testing.assert_allclose(losses[np.argsort(group.ids), 0], expected, rtol=1e-4)
    worst = 0.0
    for name, rows in group.slices.items():
        mine, theirs = rows.local.double().numpy()[np.argsort(rows.agents)], plain.parameters(name)
        worst = max(worst, np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))
    return worst


class PlainParse:
    """All agents of a plan in one process; `step` is one round of one local step."""

    def __init__(self, plan, dataset):
        self.plan = plan
        self.job = plan.job
        self.dtype = getattr(torch, self.job.dtype)
        self.inputs = self._standardised(dataset)
        self.labels = torch.from_numpy(dataset.labels)
        self.balances = {agent.id: 1.0 for agent in plan.agents}
        self.samplers = [
            Sampler(np.array([len(own)]), np.array([i]), self.job.train.batch_size, self.job.seed)
            for i, own in enumerate(plan.samples)
        ]
        self.networks, self.optimisers = {}, {}
        self._make_networks()

    def round(self, index):
        """H local steps of every agent that is here, then mixing; returns the last total loss of each."""
        if self.plan.at(index) is not self.plan:
            self._enter(self.plan.at(index))
        here = [agent for agent in self.plan.agents if agent.modalities]
        steps = range(index * self.job.train.local_steps, (index + 1) * self.job.train.local_steps)
        losses = [self._local_step(agent, step) for step in steps for agent in here]
        self._mix(index)
        return losses[-len(here) :]

    def parameters(self, name):
        """float64 [holders, P] of one slice, by ascending id, in the order of the network's parameters."""
        spec = next(s for s in self.plan.slices if s.name == name)
        return np.stack([self._row(i, spec).detach().double().numpy() for i in spec.holders])

    def _make_networks(self):
        """At initial values, for those that are here, with an optimiser each."""
        o = self.job.train.optimiser
        here = [agent for agent in self.plan.agents if agent.modalities]
        self.networks = {agent.id: self.plan.network(agent, self.job.seed).to(self.dtype) for agent in here}
        self.optimisers = {
            i: torch.optim.SGD(self._groups(network), lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
            for i, network in self.networks.items()
        }

    def _groups(self, network):
        """Logits of adaptive widths take plain steps of a length of their own."""
        groups = [{"params": [p for name, p in network.named_parameters() if not name.startswith("widths.")]}]
        if logits := [p for name, p in network.named_parameters() if name.startswith("widths.")]:
            rate = self.job.method.slices.adapt.rate
            groups.append({"params": logits, "lr": rate, "momentum": 0.0, "weight_decay": 0.0})
        return groups

    @torch.no_grad()
    def _enter(self, plan):
        """Events: what an agent still holds goes on with its momentum, what it gains is a neighbour's, drawn at random.

        Nobody remembers what it lost.
        """
        networks, optimisers = self.networks, self.optimisers
        rows = {spec.name: {i: self._row(i, spec) for i in spec.holders} for spec in self.plan.slices}
        self.plan = plan
        self._make_networks()
        for i in self.networks.keys() & networks.keys():
            before = dict(networks[i].named_parameters())
            for name, p in self.networks[i].named_parameters():
                if name in before:
                    p.copy_(before[name])
                    self.optimisers[i].state[p] = optimisers[i].state[before[name]]
        for spec in plan.slices:
            had = rows.get(spec.name, {})
            for i in set(spec.holders) - had.keys():
                dense = plan.graphs[spec.graph].at(plan.start).dense() if spec.graph else np.eye(len(spec.holders))
                neighbours = [
                    j for j, w in zip(spec.holders, dense[spec.holders.index(i)], strict=True) if w and j in had
                ]
                if neighbours:
                    draw = stream(self.job.seed, f"donor:{spec.name}", i, plan.start)
                    self._write(i, spec, had[draw.choice(neighbours)])

    def _standardised(self, dataset):
        """Moments over the samples of all that ever hold a modality together, as NumPy gives them."""
        inputs = {}
        for m, x in dataset.modalities.items():
            holders = sorted({a.id for era in self.plan.eras for a in era.agents if m in a.modalities})
            held = np.concatenate([self.plan.samples[i] for i in holders])
            assert set(held) <= set(dataset.indices(TRAIN))
            mean, std = x[held].astype(np.float64).mean(0), x[held].astype(np.float64).std(0)
            scale = np.where(std > 1e-6 * np.abs(mean), std, np.inf)
            inputs[m] = torch.from_numpy((x - mean.astype(np.float32)) / scale.astype(np.float32)).to(self.dtype)
            inputs[m].clamp_(-10, 10)
        return inputs

    def _local_step(self, agent, step):
        position, mask = self.samplers[agent.id].batch(step)
        index = self.plan.samples[agent.id][position[0][mask[0]]]
        network, optimiser = self.networks[agent.id], self.optimisers[agent.id]
        y = self._labels(agent)[position[0][mask[0]]]
        loss = self._loss(agent, step, network({m: self.inputs[m][index] for m in agent.modalities}), y)
        optimiser.zero_grad()
        loss.backward()
        self._before_step(agent)
        optimiser.step()
        return float(loss.detach())

    def _loss(self, agent, step, out, y):
        """What an agent minimises in a step; out: of its network for the batch."""
        classification = self._classification(out, y)
        if len(agent.modalities) == 1:
            return classification
        alignment = self._alignment(self.networks[agent.id], out.z)
        loss = classification + self._weight(agent, step, classification, alignment) * alignment
        return loss + self._distance_of_widths(out, y) if out.width_logits and (y >= 0).any() else loss

    def _before_step(self, agent):
        """For methods that do something about the gradients of an agent."""

    def _labels(self, agent):
        """Of an agent's samples, -1 where it does not know them."""
        own, fraction = self.plan.samples[agent.id], self.job.data.labelled_fraction
        return torch.from_numpy(known_labels(self.labels[own].numpy(), own, agent.id, fraction, self.job.seed))

    def _classification(self, out, y):
        """Cross-entropy of the ensemble and mean cross-entropy of the heads, over the labelled samples."""
        known = y >= 0
        if not known.any():
            return sum(logits.sum() for logits in out.logits.values()) * 0
        by_type, by_head = [], []
        for logits in out.logits.values():
            share = out.share if len(logits) > 1 else torch.ones(1, dtype=self.dtype)
            by_type.append(sum(w * head for w, head in zip(share, logits, strict=True)))
            by_head.append(torch.stack([functional.cross_entropy(head[known], y[known]) for head in logits]).mean())
        return functional.cross_entropy(torch.stack(by_type).mean(0)[known], y[known]) + torch.stack(by_head).mean()

    def _distance_of_widths(self, out, y):
        """Sum over modalities of sum(w) KL(w / sum(w) || p), where w is the demand with its penalty."""
        told, total = demanded({t: v.detach().numpy() for t, v in out.logits.items()}, out.share.detach(), y.numpy()), 0
        for logits, d in zip(out.width_logits, told, strict=True):
            w = torch.from_numpy(d).to(self.dtype) + self.job.method.slices.adapt.penalty
            q, p = w / w.sum(), torch.softmax(logits, 0)
            total = total + w.sum() * functional.kl_div(p.log(), q, reduction="sum")
        return total

    def _weight(self, agent, step, classification, alignment):
        """beta in this step; an adaptive one is measured before the first step of every so many rounds."""
        schedule, (index, inside) = self.job.method.beta_schedule, divmod(step, self.job.train.local_steps)
        if schedule.kind == "warm-up":
            return self.job.method.beta * min(1, index / schedule.rounds)
        if schedule.kind == "adaptive" and inside == 0 and index % schedule.every == 0:
            encoders = list(self.networks[agent.id].encoders.parameters())
            norms = []
            for loss in (classification, alignment):
                self.networks[agent.id].zero_grad()
                loss.backward(retain_graph=True)
                norms.append(torch.cat([p.grad.flatten() for p in encoders]).norm())
            ratio = min(max(float(norms[0] / norms[1]), 1 / schedule.limit), schedule.limit)
            before = self.balances[agent.id]
            self.balances[agent.id] = schedule.decay * before + (1 - schedule.decay) * ratio
        return self.job.method.beta * self.balances[agent.id]

    def _alignment(self, network, z):
        """Cosine hard negatives, no label mask: InfoNCE as a cross-entropy with the positive on the diagonal."""
        r = z["redundant"]
        near_r, u, s = (network.projectors[t](z[t]) if network.projectors else z[t] for t in
                        ("redundant", "unique", "synergistic"))  # fmt: skip
        terms = []
        for m, n in [(m, n) for m in range(len(r)) for n in range(len(r)) if m != n]:
            near = functional.cosine_similarity(r[m].unsqueeze(1), r[n].unsqueeze(0), dim=-1)
            hard = [functional.cosine_similarity(near_r[m], other, dim=-1) for other in (u[m], u[n], s[m], s[n])]
            logits = torch.cat([near, torch.stack(hard, 1)], 1) / self.job.method.temperature
            terms.append(functional.cross_entropy(logits, torch.arange(len(near))))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def _mix(self, index):
        for spec in self.plan.slices:
            if not spec.graph or (index + 1) % spec.every:
                continue
            often = min(other.every for other in self.plan.slices if other.graph == spec.graph)
            turn = (index + 1) // often - 1
            dense = torch.from_numpy(self.plan.graphs[spec.graph].at(turn).dense()).to(self.dtype)
            rows = dense @ torch.stack([self._row(i, spec) for i in spec.holders])
            for i, row in zip(spec.holders, rows, strict=True):
                self._write(i, spec, row)
        self._harden(index + 1)

    def _harden(self, done):
        """Adaptive widths: equal up to `start`, whole numbers after every so many rounds."""
        total, adapt = getattr(self.job.method.slices, "total", 0), getattr(self.job.method.slices, "adapt", None)
        if not adapt or (done > adapt.start and done % adapt.every):
            return
        for spec in self.plan.slices:
            for i in spec.holders if spec.name.startswith("widths[") else ():
                u, r, _ = total * torch.softmax(self._row(i, spec).double(), 0)
                if done <= adapt.start:
                    u = r = torch.tensor(total / 3)
                first = min(max(round(float(r)), 1), total - 2)
                second = min(max(round(float(r + u)), first + 1), total - 1)
                widths = torch.tensor([second - first, first, total - second], dtype=torch.float64)
                self._write(i, spec, (widths / total).log())

    def _named(self, i, spec):
        return [p for name, p in self.networks[i].named_parameters() if name.startswith(spec.parameters)]

    def _row(self, i, spec):
        return torch.cat([p.reshape(-1) for p in self._named(i, spec)])

    def _write(self, i, spec, row):
        start = 0
        for p in self._named(i, spec):
            p.copy_(row[start : start + p.numel()].view_as(p))
            start += p.numel()


class PlainOneHead(PlainParse):
    """A single head: cross-entropy of the labelled samples of a batch, 0 without any."""

    def _loss(self, agent, step, out, y):
        known, logits = y >= 0, out.logits["label"][0]
        return functional.cross_entropy(logits[known], y[known]) if known.any() else 0.0 * logits.sum()


def demanded(logits, share, y):
    """What u, r and s of each modality tell about the label, as a share of log C: float64 [M, 3].

    logits: slice type -> [H, B, C]; samples with y < 0 don't count. Every type counts the same in averages over types.
    """
    known = y >= 0

    def left(values):
        values = np.asarray(values, np.float64)[known]
        of_class = values - values.max(1, keepdims=True)
        of_class = of_class - np.log(np.exp(of_class).sum(1, keepdims=True))
        return -of_class[np.arange(known.sum()), y[known]].mean() / np.log(values.shape[1])

    u, r, s = (logits[t] for t in ("unique", "redundant", "synergistic"))
    mean = {"u": sum(w * head for w, head in zip(share.numpy(), u, strict=True)), "s": s[0]}
    mean["r"] = r[0] if len(r) == 1 else sum(w * head for w, head in zip(share.numpy(), r, strict=True))
    additive = min(left(mean["u"]), left(mean["r"]), left((mean["u"] + mean["r"]) / 2))
    best = min(additive, left(mean["s"]), left((mean["u"] + mean["r"] + mean["s"]) / 3))
    rows = []
    for m, head in enumerate(u):
        unique = max(0.0, left(np.mean([other for n, other in enumerate(u) if n != m], 0)) - additive)
        redundant = max(0.0, 1 - left(head) - unique)
        rows.append([unique, redundant, additive * max(0.0, 1 - best)])
    return np.array(rows)
