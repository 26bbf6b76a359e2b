"""The optimiser on rows against torch.optim, and the guard that keeps a bad row from being sent or saved."""

import pytest
import torch

from parse_mpi.agents.optimisers import LARGEST_GRADIENT, Sgd, guarded_step
from parse_mpi.agents.rows import SliceRows
from parse_mpi.job import Optimiser
from parse_mpi.methods.layout import ParameterSpan, SliceLayout

LAYOUT = SliceLayout((ParameterSpan("w", (2, 3), 0, 6), ParameterSpan("b", (2,), 6, 8)))


def make_rows(agents=3, ghosts=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rows = SliceRows("slice", LAYOUT, range(agents), ghosts, dtype, torch.device("cpu"), state={"momentum": 8})
    rows.source.copy_(torch.randn(agents + ghosts, 8, generator=generator, dtype=dtype))
    rows.state["momentum"].copy_(torch.randn(agents, 8, generator=generator, dtype=dtype))
    rows.gradients.copy_(torch.randn(agents, 8, generator=generator, dtype=dtype))
    return rows


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 0.1}])
def test_rows_step_like_torch_sgd(options):
    rows = make_rows()
    rows.state["momentum"].zero_()
    plain = [torch.nn.Parameter(row.clone()) for row in rows.local]
    reference = torch.optim.SGD(plain, lr=0.1, **options)
    for _ in range(3):
        gradient = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        rows.gradients.copy_(gradient)
        Sgd(Optimiser(lr=0.1, **options)).step(rows)
        for parameter, own in zip(plain, gradient, strict=True):
            parameter.grad = own.clone()
        reference.step()
    torch.testing.assert_close(rows.local, torch.stack([p.detach() for p in plain]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2 * LARGEST_GRADIENT, -1e38])
def test_an_agent_with_a_bad_gradient_keeps_everything_and_the_others_move(bad):
    rows, untouched = make_rows(dtype=torch.float32), make_rows(dtype=torch.float32)
    rows.gradients[1, 5] = bad
    expected = make_rows(dtype=torch.float32)
    Sgd(Optimiser()).step(expected)
    finite = torch.ones(3, dtype=torch.bool)
    guarded_step(Sgd(Optimiser()), [(rows, torch.arange(3))], finite)
    assert finite.tolist() == [True, False, True]
    for mine, before, after in zip(*(r.matrices().values() for r in (rows, untouched, expected)), strict=True):
        assert torch.equal(mine[1], before[1])
        assert torch.equal(mine[[0, 2]], after[[0, 2]])


def test_an_agent_whose_loss_was_not_finite_is_kept_in_every_slice():
    first, second, before = make_rows(), make_rows(), make_rows()
    finite = torch.tensor([True, True, False])
    guarded_step(Sgd(Optimiser()), [(first, torch.arange(3)), (second, torch.tensor([2, 0, 1]))], finite)
    assert torch.equal(first.local[2], before.local[2])
    assert torch.equal(second.local[0], before.local[0])
    assert not torch.equal(second.local[2], before.local[2])


def test_the_largest_step_that_is_let_through_stays_finite():
    rows = make_rows(dtype=torch.float32)
    options = Optimiser(lr=1e3, momentum=0.999)
    finite = torch.ones(3, dtype=torch.bool)
    for _ in range(50):
        rows.gradients.fill_(LARGEST_GRADIENT)
        guarded_step(Sgd(options), [(rows, torch.arange(3))], finite)
    assert finite.all()
    assert all(torch.isfinite(matrix).all() for matrix in rows.matrices().values())


def test_leaves_view_the_rows_and_backward_fills_the_gradient_matrix():
    rows = make_rows()
    rows.gradients.zero_()
    stacked, single = rows.parameters(slice(0, 2)), rows.parameters(2)
    assert stacked["w"].shape == (2, 2, 3)
    assert single["w"].shape == (2, 3)
    ((stacked["w"] ** 2).sum() + (3 * single["b"]).sum()).backward()
    torch.testing.assert_close(rows.gradients[:2, :6], 2 * rows.local[:2, :6])
    assert rows.gradients[2].tolist() == [0.0] * 6 + [3.0, 3.0]
    rows.local[2, 6] = 7.0
    assert float(single["b"][0].detach()) == 7.0
