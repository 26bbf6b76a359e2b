"""Training balance: who leaves out which steps, against counting and against rounds in plain code."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_parse import largest_difference
from small_jobs import write_job
from test_distillation import SMALL, PlainDmml

from parse_mpi.agents.balance import Balanced, TrainingBalance
from parse_mpi.agents.optimisers import make_optimiser
from parse_mpi.agents.rows import SliceRows
from parse_mpi.errors import JobError
from parse_mpi.job import SgdOptimiser, Train
from parse_mpi.job.dmml import Balance
from parse_mpi.jobfile import load_job
from parse_mpi.methods.layout import ParameterSpan, SliceLayout

SGD = Train(optimiser=SgdOptimiser(lr=1.0, momentum=0.5))
METHOD = SMALL["method"] | {"kd_weight": 0.0, "balance": {"decay": 0.5, "least": 0.3}}


def balanced_rows(agents, width=3, **options):
    """A balanced optimiser, and rows of ones for some agents."""
    optimiser = Balanced(make_optimiser(SGD), Balance(**options))
    layout = SliceLayout((ParameterSpan("p", (width,), 0, width),))
    rows = SliceRows("s", layout, agents, 0, torch.float64, torch.device("cpu"), state=optimiser.state(width))
    rows.local.fill_(1)
    return optimiser, rows


@given(st.lists(st.floats(0, 0.95), min_size=1, max_size=4), st.integers(1, 60))
def test_steps_are_left_out_evenly(skipped, steps):
    """After n steps a row has left out floor(n * skipped) of them; its momentum knows of none of those."""
    optimiser, rows = balanced_rows(range(len(skipped)))
    rows.state["skipped"][:, 0] = torch.tensor(skipped)
    optimiser.before_round(rows)
    plain = [(1.0, 0.0, 0, 0.0)] * len(skipped)  # value, momentum, steps taken, debt
    for _ in range(steps):
        rows.gradients.fill_(0.25)
        optimiser.step(rows)
        for k, (value, momentum, taken, debt) in enumerate(plain):
            debt += float(rows.state["skipped"][k])
            if debt >= 1:
                plain[k] = (value, momentum, taken, debt - 1)
            else:
                momentum = 0.5 * momentum + 0.25
                plain[k] = (value - momentum, momentum, taken + 1, debt)
    for k, (value, momentum, taken, _) in enumerate(plain):
        assert rows.local[k].tolist() == pytest.approx([value] * 3)
        assert rows.state["momentum"][k].tolist() == pytest.approx([momentum] * 3)
        assert abs(steps - taken - steps * skipped[k]) <= 1 + 1e-9


def test_the_slowest_slice_of_an_agent_sets_the_pace():
    """Agents 4 and 9 hold both slices, 4 is faster in the first and 9 in the second; 5 holds the first alone."""
    slices = {"first": balanced_rows([4, 5, 9], least=0.3), "second": balanced_rows([4, 9], least=0.3)}
    agent = {"first": torch.tensor([0, 1, 2]), "second": torch.tensor([0, 2])}
    both = [(*slices[name], agent[name]) for name in slices]
    balance = TrainingBalance(both, 3, torch.float64, torch.device("cpu"))
    for name, gradients in (("first", [0.4, 0.4, 0.1]), ("second", [0.2, 1.0])):
        optimiser, rows = slices[name]
        optimiser.before_round(rows)
        rows.gradients[:] = torch.tensor(gradients)[:, None]
        optimiser.step(rows)
    balance.measure()
    speeds = {name: rows.state["speed"].squeeze(1).tolist() for name, (_, rows) in slices.items()}
    assert speeds == {"first": pytest.approx([0.4, 0.4, 0.1]), "second": pytest.approx([0.2, 1.0])}
    skipped = {name: rows.state["skipped"].squeeze(1).tolist() for name, (_, rows) in slices.items()}
    assert skipped == {"first": pytest.approx([0.5, 0, 0]), "second": pytest.approx([0, 0.7])}


class PlainBalanced(PlainDmml):
    """Speeds, shares and debts by agent and modality; a step that is left out is one without a gradient."""

    def __init__(self, plan, dataset):
        self.speed, self.skipped, self.debt, self.left_out = {}, {}, {}, 0
        super().__init__(plan, dataset)

    def encoders(self):
        for agent in self.plan.agents:
            for m in agent.modalities:
                yield agent, m, [*self.networks[agent.id].encoders[f"m_{m}"].parameters()]

    def values(self, parameters):
        return torch.cat([p.detach().flatten() for p in parameters])

    def round(self, index):
        self.start = {(agent.id, m): self.values(p) for agent, m, p in self.encoders()}
        self.taken = dict.fromkeys(self.start, 0)
        return super().round(index)

    def _before_step(self, agent):
        for other, m, parameters in self.encoders():
            key = (agent.id, m)
            if other is agent:
                self.debt[key] = self.debt.get(key, 0.0) + self.skipped.get(key, 0.0)
                if self.debt[key] >= 1:
                    self.debt[key] -= 1
                    self.left_out += 1
                    for p in parameters:
                        p.grad = None
                else:
                    self.taken[key] += 1

    def _mix(self, index):
        options = self.job.method.balance
        for agent, m, parameters in self.encoders():
            key = (agent.id, m)
            if self.taken[key]:
                change = (self.values(parameters) - self.start[key]).norm() / self.start[key].norm() / self.taken[key]
                old = self.speed.get(key, change)
                self.speed[key] = options.decay * old + (1 - options.decay) * change
        for (i, m), speed in self.speed.items():
            slowest = min(other for (j, _), other in self.speed.items() if j == i)
            self.skipped[i, m] = 1 - max(options.least, float(slowest / speed))
        super()._mix(index)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_rounds_equal_those_of_plain_code(tmp_path, engine):
    references = []

    def reference(plan, dataset):
        references.append(PlainBalanced(plan, dataset))
        return references[0]

    changes = SMALL | {
        "agents": [{"modalities": ["top"], "count": 1}, {"modalities": ["top", "bottom"], "count": 3}],
        "encoders": {"bottom": {"kind": "mlp", "hidden": [64]}},  # of which a step changes less
        "method": METHOD,
        "train": {"batch_size": 10, "local_steps": 3},
        "engine": engine,
    }
    assert largest_difference(tmp_path, changes, 5, reference) < 1e-10
    assert references[0].left_out > 3


def test_optimisers_that_need_every_step_are_refused(tmp_path):
    train = {"optimiser": {"name": "gradient-tracking", "lr": 0.01}, "order": "consensus"}
    with pytest.raises(JobError, match="gradient-tracking needs a step of every slice in every round"):
        load_job(write_job(tmp_path, {"method": METHOD, "train": {"optimiser": None} | train}))
