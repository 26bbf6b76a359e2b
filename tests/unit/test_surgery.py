"""Gradient surgery between camps: the projection by hand, and whole rounds against plain modules and dense matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_parse import PlainOneHead, largest_difference
from small_jobs import make_trainer, write_job

from parse_mpi.agents.surgery import reconciled, row_sums
from parse_mpi.errors import JobError
from parse_mpi.job import MlpEncoder, MonolithicMethod
from parse_mpi.jobfile import load_job
from parse_mpi.methods.monolithic import Monolithic
from parse_mpi.population import Agent

METHOD = {"name": "monolithic", "surgery": "pcgrad"}
CHANGES = {
    "topology": {"kind": "erdos-renyi", "probability": 0.6},
    "method": METHOD,
    "train": {"batch_size": 16, "local_steps": 2, "optimiser": {"lr": 0.1, "momentum": 0.8}},
    "dtype": "float64",
}


def projected(first, second):
    """PCGrad (Yu et al. 2020) of two updates, written with scalars."""
    inner = sum(a * b for a, b in zip(first, second, strict=True))
    if inner >= 0:
        return [a + b for a, b in zip(first, second, strict=True)]
    ahead, behind = inner / sum(b * b for b in second), inner / sum(a * a for a in first)
    return [a - ahead * b + b - behind * a for a, b in zip(first, second, strict=True)]


def test_projection_by_hand():
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = torch.tensor([[-1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
    update, opposed = reconciled(first, second)
    # (1, 0) becomes (1/2, 1/2) and (-1, 1) becomes (0, 1); the second pair agrees; the third stands still.
    assert update.tolist() == [[0.5, 1.5], [1.0, 4.0], [0.0, 0.0]]
    assert opposed.tolist() == [[True], [False], [True]]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_projection_is_that_of_pcgrad(width, rows, seed):
    first, second = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, rows, width)))
    update, _ = reconciled(first, second)
    expected = [projected(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_allclose(update, expected, rtol=1e-10, atol=1e-12)


def test_squares_that_are_no_numbers_do_no_harm():
    tiny = torch.full((1, 2), 1e-30)  # its square is 0 in float32
    huge = torch.full((1, 2), 1e25)  # its square is infinite
    for first, second in ((tiny, -tiny), (tiny, -1e20 * tiny), (0 * tiny, tiny), (huge, -huge / 2), (huge, -tiny)):
        update, _ = reconciled(first, second)
        assert update.isfinite().all()


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 1001])
def test_sums_of_rows_do_not_depend_on_the_other_rows(width):
    values = torch.randn(5, 2 * width, generator=torch.Generator().manual_seed(width))[:, :width]
    together = row_sums(values)
    torch.testing.assert_close(together.squeeze(1).double(), values.double().sum(1), rtol=1e-5, atol=1e-4)
    for row in range(5):
        assert torch.equal(row_sums(values[row : row + 1].clone()), together[row : row + 1])


class PlainMonolithic(PlainOneHead):
    """Starts and updates apart, mixed by dense matrices and reconciled with NumPy."""

    def round(self, index):
        self.starts = {spec.name: torch.from_numpy(self.parameters(spec.name)) for spec in self.plan.slices}
        return super().round(index)

    @torch.no_grad()
    def _mix(self, index):
        several = {agent.id for agent in self.plan.agents if len(agent.modalities) > 1}
        for spec in self.plan.slices:
            start, end = self.starts[spec.name], torch.from_numpy(self.parameters(spec.name))
            dense = self.plan.graphs[spec.graph].at(index).dense()
            multimodal = np.array([i in several for i in spec.holders])
            parts = [dense @ (np.where(camp[:, None], end - start, 0)) for camp in (~multimodal, multimodal)]
            for i, row, first, second in zip(spec.holders, dense @ start.numpy(), *parts, strict=True):
                self._write(i, spec, torch.from_numpy(row + projected(first, second)))


def test_rounds_are_those_of_plain_modules(tmp_path):
    assert largest_difference(tmp_path, CHANGES, 8, PlainMonolithic) <= 1e-10


def test_conflicts_are_counted_and_change_what_is_learnt(tmp_path):
    cut, plain = (make_trainer(tmp_path, CHANGES | {"method": METHOD | {"surgery": s}})[0] for s in ("pcgrad", "none"))
    for k in range(8):
        cut.train_round(k)
        plain.train_round(k)
    trunk, other = (trainer.now.group.slices["trunk"] for trainer in (cut, plain))
    assert 0 < trunk.state["conflicts"].sum() <= 8 * len(trunk.agents)
    assert not torch.allclose(trunk.local, other.local, rtol=1e-6)


def test_without_conflicts_it_is_adapt_then_combine(tmp_path, monkeypatch):
    changes = CHANGES | {"train": CHANGES["train"] | {"optimiser": {"name": "qg-dsgdm", "lr": 0.1}}}
    cut, plain = (make_trainer(tmp_path, changes | {"method": METHOD | {"surgery": s}})[0] for s in ("pcgrad", "none"))
    monkeypatch.setattr(
        "parse_mpi.agents.surgery.reconciled", lambda a, b: (a + b, torch.zeros(len(a), 1, dtype=torch.bool))
    )
    for k in range(6):
        for trainer in (cut, plain):
            trainer.train_round(k)
    for name, rows in plain.now.group.slices.items():
        torch.testing.assert_close(cut.now.group.slices[name].local, rows.local, rtol=1e-9, atol=1e-12)


def test_camps_are_of_slices_that_both_sorts_hold():
    sets = [("a",), ("a",), ("b",), ("a", "b"), ("a", "b", "c")]
    agents = [Agent(i, held, (MlpEncoder(hidden=(3,)),) * len(held)) for i, held in enumerate(sets)]
    table = {spec.name: spec.camps for spec in Monolithic(MonolithicMethod(**METHOD)).slices(agents)}
    assert table == {
        "encoder[a]": ((0, 1), (3, 4)),
        "encoder[b]": ((2,), (3, 4)),
        "encoder[c]": (),
        "trunk": ((0, 1, 2), (3, 4)),
        "label_head": ((0, 1, 2), (3, 4)),
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"train": {"order": "consensus"}}, "needs train.order: adapt-then-combine"),
        ({"train": {"optimiser": {"name": "d2", "lr": 0.1}}}, "do nothing but average rows"),
        ({"exchange": {"budget_bytes_per_link": 1000}}, "leave budget_bytes_per_link out"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, changes, what):
    with pytest.raises(JobError, match=what):
        load_job(write_job(tmp_path, {"method": {**METHOD, "slices": None}} | changes))
    load_job(write_job(tmp_path, {"method": {"name": "monolithic"}} | changes))
