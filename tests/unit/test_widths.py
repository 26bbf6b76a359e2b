"""Adaptive slice widths: masks, demand and hardening against plain loops, and what a job makes of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_parse import demanded
from small_jobs import ADAPTIVE, make_trainer, write_job

from parse_mpi.errors import JobError
from parse_mpi.job import ParseMethod
from parse_mpi.jobfile import load_job
from parse_mpi.methods.parse import Parse
from parse_mpi.model.network import Output
from parse_mpi.model.widths import SoftWidths, demand, harden, width_loss, widths_of
from parse_mpi.run.preemption import StopRequest
from parse_mpi.run.summary import width_lines
from parse_mpi.storage.metrics import read_metrics

LOGITS = st.tuples(*[st.floats(-8, 8)] * 3)
TOTALS = st.integers(3, 40)
MULTIMODAL = {"method": {"slices": ADAPTIVE}}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(LOGITS, TOTALS)
def test_masks_are_the_overlaps_of_positions_and_intervals(logits, total):
    """Of [0, D]: redundant first, then unique, then synergistic; position k is [k, k + 1]."""
    p = np.exp(logits) / np.exp(logits).sum()
    ends = total * np.cumsum([0, p[1], p[0], p[2]])
    overlap = [[max(0, min(high, k + 1) - max(low, k)) for k in range(total)] for low, high in pairwise(ends)]
    cut = SoftWidths(total).double()
    with torch.no_grad():
        cut.logits.copy_(torch.tensor(logits, dtype=torch.float64))
    masks = cut().numpy()
    np.testing.assert_allclose(masks, np.array(overlap)[[1, 0, 2]], atol=1e-12)
    np.testing.assert_allclose(masks.sum(0), 1, atol=1e-15, rtol=0)
    np.testing.assert_allclose(masks.sum(1), total * p, atol=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(LOGITS, min_size=1, max_size=5), TOTALS)
def test_hardened_widths_are_whole_and_no_slice_is_lost(logits, total):
    hard = harden(np.array(logits), total)
    widths, soft = widths_of(hard, total), widths_of(np.array(logits), total)
    np.testing.assert_allclose(widths, np.rint(widths), atol=1e-9)
    assert (np.rint(widths) >= 1).all()
    assert (np.rint(widths).sum(-1) == total).all()
    np.testing.assert_allclose(harden(hard, total), hard, atol=1e-12)
    for row, (mine, before) in enumerate(zip(widths, soft, strict=True)):
        assert np.array_equal(harden(np.array(logits[row]), total), hard[row])
        if (before >= 1).all():  # each boundary moves by half a position at most
            assert abs(mine[1] - before[1]) <= 0.5 + 1e-9
            assert abs(mine[2] - before[2]) <= 0.5 + 1e-9


def outputs(modalities=3, batch=9, classes=4, seed=0, agents=()):
    """Random logits of a multimodal agent, shares, and labels of which some are unknown and some padding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 2 * torch.randn(*agents, *shape, generator=generator, dtype=torch.float64)

    y = torch.randint(0, classes, (*agents, batch), generator=generator)
    heads = {"unique": modalities, "redundant": 1, "synergistic": 1}
    logits = {t: draw(count, batch, classes) for t, count in heads.items()}
    for t in ("unique", "synergistic"):  # heads that know something, so that no demand is always 0
        logits[t] = logits[t] + 3 * torch.nn.functional.one_hot(y, classes).unsqueeze(-3)
    y[..., 3] = -1
    mask = torch.ones(*agents, batch, dtype=torch.float64)
    mask[..., -2:] = 0
    return logits, draw(modalities).softmax(-1), y, mask, tuple(draw(3) for _ in range(modalities))


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_demand_equals_plain_loops(modalities, seed):
    logits, share, y, mask, _ = outputs(modalities, seed=seed)
    plain = demanded({t: v.numpy() for t, v in logits.items()}, share, np.where(mask.bool(), y, -1))
    np.testing.assert_allclose(demand(logits, share, y, mask, "types"), plain, rtol=1e-12, atol=1e-12)
    assert (plain > 0).any()


def test_many_agents_at_once_have_the_demands_that_each_has_alone():
    logits, share, y, mask, width_logits = outputs(agents=(5,))
    together = width_loss(width_logits, logits, share, y, mask, penalty=0.1, how="types")
    for k in range(5):
        mine = tuple(v[k] for v in width_logits), {t: v[k] for t, v in logits.items()}, share[k], y[k], mask[k]
        torch.testing.assert_close(width_loss(*mine, penalty=0.1, how="types"), together[k])


def test_the_gradient_of_the_loss_is_that_of_the_formula_and_reaches_nothing_else():
    """d/d theta of sum(w) KL(w / sum(w) || softmax theta) is sum(w) p - w, which vanishes at the demand."""
    logits, share, y, mask, width_logits = outputs()
    method = Parse(ParseMethod(name="parse", slices={"total": 12, "adapt": {"penalty": 0.3}}))
    leaves = [v.requires_grad_() for v in (*width_logits, *logits.values())]
    total = method.loss(Output({}, {}, logits, share, width_logits), y, mask, None)[0]
    without = Parse(ParseMethod(name="parse")).loss(Output({}, {}, logits, share), y, mask, None)[0]
    mine, plain = (torch.autograd.grad(loss, leaves, allow_unused=True) for loss in (total, without))
    wanted = demand(logits, share, y, mask, "types") + 0.3
    assert total > without
    for m, theta in enumerate(width_logits):
        expected = wanted[m].sum() * theta.detach().softmax(0) - wanted[m]
        torch.testing.assert_close(mine[m], expected)
        assert plain[m] is None
    for one, other in zip(mine[3:], plain[3:], strict=True):
        assert torch.equal(one, other)
    at_demand = tuple((w / w.sum()).log() for w in wanted)
    distance = width_loss(at_demand, logits, share, y, mask, penalty=0.3, how="types")
    torch.testing.assert_close(distance, torch.zeros_like(distance))


def test_a_batch_without_labels_moves_no_boundary():
    logits, share, y, mask, width_logits = outputs()
    leaves = [v.requires_grad_() for v in width_logits]
    loss = width_loss(width_logits, logits, share, torch.full_like(y, -1), mask, penalty=0.1, how="types")
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, leaves))


def widths_after(trainer, rounds):
    found = []
    for k in range(rounds):
        trainer.train_round(k)
        found.append(trainer.now.group.widths())
    return np.array(found)  # [round, A, modality, 3]


def test_widths_begin_equal_and_are_whole_after_every_so_many_rounds(tmp_path):
    trainer, plan, _ = make_trainer(tmp_path, {"method": {"slices": ADAPTIVE | {"adapt": {"every": 3, "start": 4}}}})
    found = widths_after(trainer, 10)
    assert trainer.now.group.ids.tolist() == [agent.id for agent in trainer.now.group.agents]
    for k, agent in enumerate(trainer.now.group.agents):
        for column, m in enumerate(plan.shapes):
            own = found[:, k, column]
            if m not in agent.modalities:
                assert np.isnan(own).all()
                continue
            np.testing.assert_allclose(own.sum(1), 10, atol=1e-5)
            np.testing.assert_allclose(own[:4], [[4, 3, 3]] * 4, atol=1e-5)
            whole = [done for done, widths in enumerate(own, 1) if np.allclose(widths, np.rint(widths), atol=1e-5)]
            assert {1, 2, 3, 4, 6, 9} <= set(whole)
            assert len(agent.modalities) == 1 or len(whole) == 6  # others wait until a neighbour has moved


@pytest.mark.parametrize("name", ["sgd", "adamw", "qg-dsgdm", "gradient-tracking", "d2"])
def test_boundaries_move_alike_whatever_the_optimiser(tmp_path, name):
    """In the first step, before the optimisers' other moves change what heads say."""
    order = "consensus" if name == "gradient-tracking" else "adapt-then-combine"
    slices = ADAPTIVE | {"adapt": {"every": 9, "rate": 0.4}}
    changes = {"topology": {"kind": "complete"}, "method": {"slices": slices}}
    moved = {}
    for optimiser in ({"name": name, "lr": 0.01, "weight_decay": 0.1}, {"name": "sgd", "lr": 0.3}):
        trainer, *_ = make_trainer(tmp_path, changes | {"train": {"order": order, "optimiser": optimiser}})
        trainer.train_round(0)
        moved[optimiser["lr"]] = trainer.now.group.widths()
    np.testing.assert_allclose(moved[0.01], moved[0.3], atol=1e-6)
    assert np.nanmax(np.abs(moved[0.01] - [3, 4, 3])) > 0.01


def test_metrics_and_the_last_lines_tell_the_widths(tmp_path):
    changes = MULTIMODAL | {"train": {"rounds": 4}, "evaluate": {"every": 2}}
    trainer, *_ = make_trainer(tmp_path, changes)
    trainer.train(0, 4, StopRequest())
    metrics = read_metrics(tmp_path)
    found, group = metrics["evaluations/widths"], trainer.now.group
    assert found.shape == (2, 10, 2, 3)
    np.testing.assert_array_equal(found[-1], group.widths()[np.argsort(group.ids)])
    assert list(metrics.attributes["evaluations/widths"]["type"]) == ["unique", "redundant", "synergistic"]
    (line,) = width_lines(metrics)
    top = np.nanmean(found[-1, :, 0], 0)
    assert f"top {top[0]:.3g} unique, {top[1]:.3g} redundant, {top[2]:.3g} synergistic; bottom " in line


def test_fixed_widths_are_not_recorded(tmp_path):
    trainer, *_ = make_trainer(tmp_path, {"train": {"rounds": 1}})
    trainer.train(0, 1, StopRequest())
    metrics = read_metrics(tmp_path)
    assert "evaluations/widths" not in metrics.arrays
    assert list(width_lines(metrics)) == []


def test_without_multimodal_agents_nobody_could_tell_unique_from_redundant(tmp_path):
    with pytest.raises(JobError, match="there is none: give slices fixed widths"):
        make_trainer(tmp_path, MULTIMODAL | {"agents": [{"modalities": ["top"], "count": 3}]})


@pytest.mark.parametrize(
    ("slices", "what"),
    [
        ("{total: 2}", "`method.slices.total` is 2; it must be a whole number (at least 3"),
        ("{total: 9, adpt: {}}", "unknown key `method.slices.adpt`"),
        ("{total: 9, adapt: {evry: 3}}", "unknown key `method.slices.adapt.evry`"),
        ("{total: 9, adapt: {every: 0}}", "`method.slices.adapt.every` is 0; it must be a whole number (at least 1"),
        ("{total: 9, adapt: 5}", "`method.slices.adapt` is 5; it must be a mapping with the keys penalty, "),
        ("{adapt: {every: 5}}", "`method.slices.total` is missing; it must be a whole number"),
        (
            "{total: 9, unique: 3}",
            "`method.slices` is {total: 9, unique: 3}; it must be {unique: ..., redundant: ..., ",
        ),
        ("{uniqe: 3}", "`method.slices` is {uniqe: 3}; it must be {unique: ..., redundant: ..., synergistic: ...} or "),
        ("{unique: 3, redundnt: 4}", "unknown key `method.slices.redundnt`"),
        ("9", "`method.slices` is 9; it must be {unique: ..., redundant: ..., synergistic: ...} or {total: ..., adapt"),
    ],
)
def test_wrong_slices_are_told_in_words(tmp_path, slices, what):
    with pytest.raises(JobError) as caught:
        load_job(write_job(tmp_path), [f"method.slices={slices}"])
    (problem,) = caught.value.problems
    assert problem.what.startswith(what), problem.what
