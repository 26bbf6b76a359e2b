"""The reference for FedEPA: plain modules, dense mixing, losses written out, and autograd straight to the weights."""

import math

import numpy as np
import torch
from plain_parse import PlainParse
from torch.func import functional_call
from torch.nn import functional

from parse_mpi.data.sampler import LabelledSampler


class PlainFedepa(PlainParse):
    """Weights by agent and parameter name in `taken`."""

    def __init__(self, plan, dataset):
        super().__init__(plan, dataset)
        self.taken = {
            i: {name: torch.ones_like(p) for name, p in network.named_parameters() if name.startswith("encoders.")}
            for i, network in self.networks.items()
        }
        self.batches = {
            i: LabelledSampler(self.job, self._labels(plan.agents[i]).numpy(), np.array([len(own)]), np.array([i]))
            for i, own in enumerate(plan.samples)
        }
        self.steps_taken = {}

    def _groups(self, network):
        return list(network.parameters())

    def _classification(self, out, y):
        known = y >= 0
        logits = out.logits["label"][0]
        return functional.cross_entropy(logits[known], y[known]) if known.any() else logits.sum() * 0

    def _weight(self, agent, step, classification, alignment):
        return self.job.method.alignment

    def _alignment(self, network, z):
        """As the formulas have it, for each pair of modalities and each modality by itself."""
        o, aligned, context = self.job.method, z["aligned"], z["context"]
        M = range(len(aligned))
        pairs = [(m, n) for m in M for n in M if m < n]
        contrast = []
        for m, n in pairs:
            near = functional.cosine_similarity(aligned[m].unsqueeze(1), aligned[n].unsqueeze(0), dim=-1)
            near, own = near / o.temperature, torch.arange(len(near))
            contrast.append((functional.cross_entropy(near, own) + functional.cross_entropy(near.T, own)) / 2)
        if o.independence.kind == "correlation":
            dependence = [correlation(aligned[m], context[m]) for m in M]
        else:
            dependence = [hsic(aligned[m], context[m]) for m in M]
        overlap = [functional.cosine_similarity(context[m], context[n], dim=-1).square().mean() for m, n in pairs]
        mean = [sum(terms) / len(terms) for terms in (contrast, dependence, overlap)]
        return mean[0] + o.independence.weight * mean[1] + o.context * mean[2]

    @torch.no_grad()
    def _mix(self, index):
        own = {i: {name: p.clone() for name, p in network.named_parameters()} for i, network in self.networks.items()}
        super()._mix(index)
        for i, network in self.networks.items():
            mixed = {name: p.clone() for name, p in network.named_parameters()}
            self._learn(i, index, own[i], mixed)
            blended = self._blended(own[i], mixed, self.taken[i])
            for name, p in network.named_parameters():
                p.copy_(blended[name])

    def _blended(self, own, mixed, taken):
        """Parameters of a network: encoders as far as the weights say, everything else as it was mixed."""
        return {name: own[name] + (mixed[name] - own[name]) * taken[name] if name in taken else p
                for name, p in mixed.items()}  # fmt: skip

    def _learn(self, i, index, own, mixed):
        """No step in the first round, up to `first_steps` in the second, `steps` in every later one."""
        o, agent, losses = self.job.method.weights, self.plan.agents[i], []
        if isinstance(o, float):
            self.taken[i] = {name: torch.full_like(w, o) for name, w in self.taken[i].items()}
            return
        for step in range([0, o.first_steps, o.steps][min(index, 2)]):
            position, mask = self.batches[i].batch(index, step)
            chosen = position[0][mask[0]]
            samples, y = self.plan.samples[i][chosen], self._labels(agent)[chosen]
            taken = {name: w.clone().requires_grad_() for name, w in self.taken[i].items()}
            with torch.enable_grad():
                x = {m: self.inputs[m][samples] for m in agent.modalities}
                out = functional_call(self.networks[i], self._blended(own, mixed, taken), (x,))
                loss = functional.cross_entropy(out.logits["label"][0], y)
                slopes = torch.autograd.grad(loss, list(taken.values()))
            for (name, w), slope in zip(taken.items(), slopes, strict=True):
                self.taken[i][name] = (w.detach() - o.rate * slope).clamp(0, 1)
            losses.append(float(loss))
            if index == 1 and len(losses) >= 10 and np.std(losses[-10:]) < o.steady:
                break
        self.steps_taken[i, index] = len(losses)


def correlation(a, c):
    """Mean over all pairs of columns of the squared coefficient of correlation, with 1e-8 added to variances."""
    a, c = a - a.mean(0), c - c.mean(0)
    variance_a, variance_c = (part.square().mean(0) + 1e-8 for part in (a, c))
    return ((a.T @ c / len(a)).square() / torch.outer(variance_a, variance_c)).mean()


def hsic(a, c):
    """tr(K H L H) / (n - 1)^2, every matrix written out."""
    n = len(a)
    if n < 2:
        return torch.zeros((), dtype=a.dtype)
    centring = torch.eye(n, dtype=a.dtype) - 1 / n

    def kernel(x):
        squared = torch.stack([(x - row).square().sum(1) for row in x])
        bandwidth = squared.detach().sum() / (n * (n - 1)) + 1e-8
        return torch.exp(-squared / (2 * bandwidth))

    return torch.trace(kernel(a) @ centring @ kernel(c) @ centring) / (n - 1) ** 2


def alignment_by_loops(aligned, context, temperature, kind, independence_weight, context_weight):
    """The whole alignment term with plain floats, sample by sample; float64 arrays [M, B, d]."""
    M, B = aligned.shape[:2]

    def cosine(u, v):
        return float(u @ v / math.sqrt((u @ u) * (v @ v)))

    contrast, overlap = [], []
    for m in range(M):
        for n in range(m + 1, M):
            for first, second in ((m, n), (n, m)):
                for j in range(B):
                    near = [math.exp(cosine(aligned[first, j], aligned[second, k]) / temperature) for k in range(B)]
                    contrast.append(-math.log(near[j] / sum(near)))
            overlap += [cosine(context[m, j], context[n, j]) ** 2 for j in range(B)]
    dependence = []
    for m in range(M):
        if kind == "hsic":
            dependence.append(float(hsic(torch.from_numpy(aligned[m]), torch.from_numpy(context[m]))))
            continue
        columns = [(a, c) for a in aligned[m].T for c in context[m].T]
        dependence.append(np.mean([np.corrcoef(a, c)[0, 1] ** 2 for a, c in columns]))
    return np.mean(contrast) + independence_weight * np.mean(dependence) + context_weight * np.mean(overlap)
