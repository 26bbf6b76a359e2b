"""The alignment term of FedEPA against its formulas written out (docs/method.md, section 4)."""

import math

import numpy as np
import pytest
import torch
from plain_fedepa import alignment_by_loops, correlation, hsic

from parse_mpi.job.fedepa import Independence
from parse_mpi.model import token_losses

ONES = torch.ones(7, dtype=torch.float64)


def parts(modalities=3, batch=7, seed=0):
    """Aligned [M, B, 4] and context [M, B, 3], which tells something about the aligned part."""
    draw = torch.Generator().manual_seed(seed)
    aligned = torch.randn(modalities, batch, 4, generator=draw, dtype=torch.float64)
    context = torch.randn(modalities, batch, 3, generator=draw, dtype=torch.float64) + aligned[..., :1]
    return aligned, context


def alignment(aligned, context, mask, kind="correlation"):
    y = torch.full(mask.shape, -1)  # labels say nothing here
    options = {"independence": Independence(kind=kind, weight=0.7), "context_weight": 0.3}
    return token_losses.alignment(aligned, context, y, mask, temperature=0.4, **options)


@pytest.mark.parametrize("kind", ["correlation", "hsic"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_alignment_equals_the_formula(kind, modalities):
    aligned, context = parts(modalities)
    expected = alignment_by_loops(aligned.numpy(), context.numpy(), 0.4, kind, 0.7, 0.3)
    assert float(alignment(aligned, context, ONES, kind)) == pytest.approx(expected, rel=1e-6)


def test_correlation_is_numpys():
    aligned, context = parts(1)
    both = np.corrcoef(np.concatenate([aligned[0].numpy(), context[0].numpy()], 1).T)
    expected = np.linalg.norm(both[:4, 4:]) ** 2 / 12
    assert float(token_losses.squared_correlation(aligned[0], context[0], ONES)) == pytest.approx(expected, rel=1e-6)
    assert float(correlation(aligned[0], context[0])) == pytest.approx(expected, rel=1e-6)


def test_hsic_is_its_definition():
    """sum over i, j of the two centred kernels, entry by entry; large for a function of a, which correlation misses."""
    draw = np.random.default_rng(0)
    a, other = draw.normal(size=(40, 1)), draw.normal(size=(40, 1))

    def kernel(x):
        squared = (x - x.T) ** 2
        return np.exp(-squared / (2 * squared.sum() / (40 * 39)))

    def by_hand(x, z):
        total, of_x, of_z = 0.0, kernel(x), kernel(z)
        for i in range(40):
            for j in range(40):
                centred = of_x[i, j] - of_x[i].mean() - of_x[:, j].mean() + of_x.mean()
                total += centred * (of_z[i, j] - of_z[i].mean() - of_z[:, j].mean() + of_z.mean())
        return total / 39**2

    mask, square = torch.ones(40, dtype=torch.float64), a**2
    for x, z in ((a, other), (a, square)):
        x_t, z_t = torch.from_numpy(x), torch.from_numpy(z)
        assert float(token_losses.hsic(x_t, z_t, mask)) == pytest.approx(by_hand(x, z), rel=1e-6)
        assert float(hsic(x_t, z_t)) == pytest.approx(by_hand(x, z), rel=1e-6)
    assert by_hand(a, square) > 3 * by_hand(a, other)


def test_overlap_is_0_for_orthogonal_contexts_and_1_for_parallel_ones():
    context = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 7, 3)
    assert float(token_losses.overlap(context, ONES)) == pytest.approx(0)
    assert float(token_losses.overlap(torch.stack([context[0], -2 * context[0]]), ONES)) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["correlation", "hsic"])
def test_padding_changes_neither_loss_nor_gradient(kind):
    mask = torch.tensor([1.0, 1, 1, 1, 0, 0, 0], dtype=torch.float64)
    short = [part[:, :4].clone().requires_grad_() for part in parts()]
    padded = [part.clone().requires_grad_() for part in parts()]
    expected, mine = alignment(*short, ONES[:4], kind), alignment(*padded, mask, kind)
    torch.testing.assert_close(mine, expected)
    expected.backward()
    mine.backward()
    for one, other in zip(padded, short, strict=True):
        torch.testing.assert_close(one.grad[:, :4], other.grad)
        assert not one.grad[:, 4:].any()


@pytest.mark.parametrize("kind", ["correlation", "hsic"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_tiny_batches_and_latents_that_do_not_vary_have_finite_gradients(kind, batch):
    aligned, context = parts(2, batch)
    aligned[0] = 0
    context[..., 1] = 0.5
    for part in (aligned, context):
        part.requires_grad_()
    loss = alignment(aligned, context, torch.ones(batch, dtype=torch.float64), kind)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(aligned.grad).all()
    assert torch.isfinite(context.grad).all()


@pytest.mark.parametrize("kind", ["correlation", "hsic"])
def test_leading_agents_give_each_agents_own_loss(kind):
    one, other = parts(seed=1), parts(seed=2)
    masks = torch.stack([ONES, torch.tensor([1.0, 1, 1, 1, 1, 0, 0], dtype=torch.float64)])
    both = alignment(*(torch.stack(pair) for pair in zip(one, other, strict=True)), masks, kind)
    expected = torch.stack([alignment(*one, masks[0], kind), alignment(*other, masks[1], kind)])
    torch.testing.assert_close(both, expected)
