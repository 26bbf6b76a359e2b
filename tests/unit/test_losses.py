"""The loss terms against loops written from the formulas of docs/method.md, section 1.3."""

import math

import pytest
import torch
from torch.nn import functional

from parse_mpi.job import ParseMethod
from parse_mpi.methods.parse import Parse
from parse_mpi.model.losses import contrastive, cross_entropy
from parse_mpi.model.network import Output

HARD = ("cosine", "squared", "none")


def latents(modalities=3, batch=5, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = {t: torch.randn(modalities, batch, width, generator=generator, dtype=torch.float64) for t in
         ("unique", "redundant", "synergistic")}  # fmt: skip
    return z, torch.randint(0, 3, (batch,), generator=generator)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def contrastive_by_the_formula(z, y, temperature, hard_negatives, mask_same_label, compared=None):
    """Anchor by anchor and pair by pair, with plain floats; y < 0 is no class that another sample could have."""
    r = z["redundant"]
    near_r, u, s = ((compared or z)[t] for t in ("redundant", "unique", "synergistic"))
    pairs = [(m, n) for m in range(len(r)) for n in range(len(r)) if m != n]
    total = 0.0
    for m, n in pairs:
        for j in range(len(y)):
            positive = cosine(r[m, j], r[n, j])
            negatives = [
                cosine(r[m, j], r[n, k])
                for k in range(len(y))
                if k != j and not (mask_same_label and y[k] == y[j] >= 0)
            ]
            if hard_negatives != "none":
                hard = [cosine(near_r[m, j], other[j]) for other in (u[m], u[n], s[m], s[n])]
                negatives += [h * h for h in hard] if hard_negatives == "squared" else hard
            partition = sum(math.exp(c / temperature) for c in [positive, *negatives])
            total += -math.log(math.exp(positive / temperature) / partition) / len(y)
    return total / len(pairs)


@pytest.mark.parametrize("hard_negatives", HARD)
@pytest.mark.parametrize("mask_same_label", [False, True])
@pytest.mark.parametrize("modalities", [2, 3])
def test_contrastive_equals_the_formula(hard_negatives, mask_same_label, modalities):
    z, y = latents(modalities)
    options = {"temperature": 0.3, "hard_negatives": hard_negatives, "mask_same_label": mask_same_label}
    mine = contrastive(z, {}, y, torch.ones(5, dtype=torch.float64), **options)
    assert float(mine) == pytest.approx(contrastive_by_the_formula(z, y, *options.values()), rel=1e-12)


@pytest.mark.parametrize("hard_negatives", HARD)
def test_slices_of_unequal_widths_are_compared_where_they_are_projected(hard_negatives):
    z, y = latents()
    z |= {"unique": z["unique"][..., :2], "synergistic": z["synergistic"][..., :1]}
    projected, _ = latents(width=6, seed=3)
    options = {"temperature": 0.3, "hard_negatives": hard_negatives, "mask_same_label": False}
    mine = contrastive(z, projected, y, torch.ones(5, dtype=torch.float64), **options)
    assert float(mine) == pytest.approx(contrastive_by_the_formula(z, y, *options.values(), projected), rel=1e-12)


def test_a_sample_without_a_label_is_a_negative_of_all_others():
    z, _ = latents()
    y = torch.tensor([1, -1, 1, -1, 2])
    options = {"temperature": 0.3, "hard_negatives": "none", "mask_same_label": True}
    mine = contrastive(z, {}, y, torch.ones(5, dtype=torch.float64), **options)
    assert float(mine) == pytest.approx(contrastive_by_the_formula(z, y, *options.values()), rel=1e-12)
    told_apart = contrastive(z, {}, torch.tensor([1, 3, 1, 4, 2]), torch.ones(5, dtype=torch.float64), **options)
    torch.testing.assert_close(mine, told_apart)


@pytest.mark.parametrize("hard_negatives", HARD)
@pytest.mark.parametrize("mask_same_label", [False, True])
def test_padding_changes_neither_loss_nor_gradient(hard_negatives, mask_same_label):
    options = {"temperature": 0.5, "hard_negatives": hard_negatives, "mask_same_label": mask_same_label}
    z, y = latents(batch=5)
    short = {t: v[:, :3].clone().requires_grad_() for t, v in z.items()}
    padded = {t: v.clone().requires_grad_() for t, v in z.items()}
    mask = torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)
    expected = contrastive(short, {}, y[:3], torch.ones(3, dtype=torch.float64), **options)
    mine = contrastive(padded, {}, y, mask, **options)
    torch.testing.assert_close(mine, expected)
    expected.backward()
    mine.backward()
    for t, v in padded.items():
        gradient = torch.zeros_like(v) if v.grad is None else v.grad
        plain = torch.zeros_like(short[t]) if short[t].grad is None else short[t].grad
        torch.testing.assert_close(gradient[:, :3], plain)
        assert torch.equal(gradient[:, 3:], torch.zeros_like(gradient[:, 3:]))


def test_leading_agents_give_each_agents_own_loss():
    (z0, y0), (z1, y1) = latents(seed=1), latents(seed=2)
    stacked = {t: torch.stack([z0[t], z1[t]]) for t in z0}
    options = {"temperature": 0.5, "hard_negatives": "cosine", "mask_same_label": True}
    ones = torch.ones(5, dtype=torch.float64)
    both = contrastive(stacked, {}, torch.stack([y0, y1]), torch.stack([ones, ones]), **options)
    torch.testing.assert_close(
        both, torch.stack([contrastive(z0, {}, y0, ones, **options), contrastive(z1, {}, y1, ones, **options)])
    )


def test_a_batch_of_one_without_hard_negatives_is_already_aligned():
    z, y = latents(batch=1)
    options = {"temperature": 0.5, "hard_negatives": "none", "mask_same_label": False}
    assert float(contrastive(z, {}, y, torch.ones(1, dtype=torch.float64), **options)) == pytest.approx(0.0, abs=1e-12)


def test_cross_entropy_equals_pytorch_with_and_without_padding():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (2, 6), generator=generator)
    mask = torch.tensor([[1.0] * 6, [1, 1, 1, 0, 0, 0]], dtype=torch.float64)
    expected = torch.stack(
        [functional.cross_entropy(logits[0], y[0]), functional.cross_entropy(logits[1, :3], y[1, :3])]
    )
    torch.testing.assert_close(cross_entropy(logits, y, mask), expected)


@pytest.mark.parametrize("ensemble", ["types", "heads"])
def test_total_is_the_weighted_sum_of_its_terms(ensemble):
    z, y = latents(modalities=2)
    generator = torch.Generator().manual_seed(5)
    logits = {t: torch.randn(h, 5, 3, generator=generator, dtype=torch.float64)
              for t, h in (("unique", 2), ("redundant", 1), ("synergistic", 1))}  # fmt: skip
    options = ParseMethod(name="parse", ensemble_weight=0.7, head_weight=1.3, ensemble=ensemble)
    output = Output(z, {}, logits, torch.full((2,), 0.5, dtype=torch.float64))
    total, of_ensemble, of_heads, alignment = Parse(options).loss(output, y, torch.ones(5).double(), torch.tensor(0.25))
    weights = [0.25, 0.25, 0.25, 0.25] if ensemble == "heads" else [1 / 6, 1 / 6, 1 / 3, 1 / 3]
    heads = torch.cat(list(logits.values()))
    torch.testing.assert_close(
        of_ensemble, functional.cross_entropy(sum(w * h for w, h in zip(weights, heads, strict=True)), y)
    )
    torch.testing.assert_close(
        of_heads, sum(w * functional.cross_entropy(h, y) for w, h in zip(weights, heads, strict=True))
    )
    torch.testing.assert_close(total, 0.7 * of_ensemble + 1.3 * of_heads + 0.25 * alignment)


def test_samples_without_a_label_have_no_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([2, -1, 0, 3, -1, 1])
    mask = torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=torch.float64)
    counted = [0, 2, 3]
    expected = functional.cross_entropy(logits[counted], y[counted])
    mine = cross_entropy(logits, y, mask)
    torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(torch.autograd.grad(mine, logits), torch.autograd.grad(expected, logits))


def test_a_batch_without_any_label_gives_zero_and_no_gradient():
    z, _ = latents(modalities=2)
    logits = {t: torch.randn(h, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(h)).requires_grad_()
              for t, h in (("unique", 2), ("redundant", 1), ("synergistic", 1))}  # fmt: skip
    output = Output(z, {}, logits, torch.full((2,), 0.5, dtype=torch.float64))
    nothing_known = torch.full((5,), -1)
    for weight in (None, torch.tensor(0.5)):
        total, of_ensemble, of_heads, alignment = Parse(ParseMethod(name="parse")).loss(
            output, nothing_known, torch.ones(5, dtype=torch.float64), weight
        )
        assert of_ensemble.item() == of_heads.item() == 0
        assert (alignment.item() > 0) == (weight is not None)
        torch.testing.assert_close(total, 0.5 * alignment)
        for gradient in torch.autograd.grad(total, list(logits.values())):
            assert torch.equal(gradient, torch.zeros_like(gradient))
