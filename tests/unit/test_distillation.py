"""DMML-KD: its losses against loops, who feels which of them, its generator's noise, and rounds of it in plain code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_parse import PlainParse, largest_difference
from small_jobs import make_trainer, write_job
from torch.nn import functional

from parse_mpi.errors import JobError
from parse_mpi.job import DmmlKdMethod, DsgdMethod, MlpEncoder
from parse_mpi.jobfile import load_job
from parse_mpi.methods.dmml import DmmlKd
from parse_mpi.methods.dsgd import Dsgd
from parse_mpi.model.activations import layer_sizes
from parse_mpi.model.distillation import energy_distance, generated_cross_entropy
from parse_mpi.model.generator_network import Generator
from parse_mpi.population import Agent

SHAPES = {"a": (5,), "b": (2, 3)}
WIDTHS = {"unique": 2, "redundant": 3, "synergistic": 3}
B, C, K, D = 6, 3, 2, 4


def distance(a, b):
    """Root of the mean squared difference."""
    return np.sqrt(np.mean((a - b) ** 2))


def plain_energy_distance(common_MBd, generated_CKd, y_B):
    """Sample by sample and point by point; 0 where no sample has a label."""
    terms = []
    for features in common_MBd:
        for k in np.flatnonzero(y_B >= 0):
            points = generated_CKd[y_B[k]]
            across = np.mean([distance(features[k], g) for g in points])
            inside = np.mean([distance(features[k], features[n]) for n in np.flatnonzero(y_B == y_B[k])])
            among = np.mean([distance(g, h) for g in points for h in points])
            terms.append(2 * across - inside - among)
    return np.mean(terms) if terms else 0.0


@given(st.lists(st.integers(-1, C - 1), min_size=B, max_size=B), st.integers(1, 3), st.integers(1, B))
def test_energy_distance_is_that_of_plain_loops(labels, M, count):
    draw = np.random.default_rng([M, count, *(label + 1 for label in labels)])
    common, generated, y = draw.normal(size=(M, B, D)), draw.normal(size=(C, K, D)), np.array(labels)
    mask = np.arange(B) < count
    found = energy_distance(*map(torch.from_numpy, (common, generated, y)), torch.from_numpy(mask).double())
    assert found.item() == pytest.approx(plain_energy_distance(common[:, :count], generated, y[:count]), abs=1e-12)
    assert found.item() > -1e-12


def test_agents_in_front_stay_apart():
    draw = torch.Generator().manual_seed(0)
    common, generated = (torch.randn(5, *shape, generator=draw) for shape in ((2, B, D), (C, K, D)))
    logits, y, mask = torch.randn(5, C, K, C, generator=draw), torch.arange(5 * B).reshape(5, B) % 4 - 1, torch.ones(B)
    for whole, one in (
        (energy_distance(common, generated, y, mask), [*map(energy_distance, common, generated, y, [mask] * 5)]),
        (generated_cross_entropy(logits, y, mask), [*map(generated_cross_entropy, logits, y, [mask] * 5)]),
    ):
        torch.testing.assert_close(whole, torch.stack(one))


def test_features_that_are_what_is_generated_have_no_distance():
    generated = torch.randn(C, K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    common = generated.flatten(0, 1).unsqueeze(0).requires_grad_()
    found = energy_distance(common, generated, torch.arange(C).repeat_interleave(K), torch.ones(C * K).double())
    assert found.item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(found, [common])
    assert gradient.abs().max() < 1e-12  # also where two points are equal


def test_cross_entropy_of_generated_features_counts_classes_as_often_as_the_batch_has_them():
    logits = torch.randn(C, K, C, generator=torch.Generator().manual_seed(2))
    y, mask = torch.tensor([2, 0, 2, -1, 1]), torch.tensor([1.0, 1, 1, 1, 0])
    expected = [functional.cross_entropy(logits[c], torch.full((K,), c)) for c in (2, 0, 2)]
    torch.testing.assert_close(generated_cross_entropy(logits, y, mask), torch.stack(expected).mean())
    assert generated_cross_entropy(logits, torch.full((5,), -1), mask) == 0


def test_every_class_has_the_same_noise_and_every_point_its_own_features():
    options = DmmlKdMethod(name="dmml-kd", slices=WIDTHS, generator={"points": 3, "noise": 2, "hidden": 7})
    made, again = (Generator(C, options) for _ in range(2))
    again.load_state_dict(made.state_dict())
    assert made().shape == (C, 3, options.common_width)
    assert made().equal(again())
    assert torch.pdist(made().flatten(0, 1)).min() > 0
    with torch.no_grad():
        made.hidden.weight[:, :C] = 0  # blind to the class
    torch.testing.assert_close(made(), made()[:1].expand(C, -1, -1))


def gradients(method, kind=("a", "b")):
    """Of every parameter of an agent's network, by name, for a batch in which one sample has no label."""
    draw = torch.Generator().manual_seed(3)
    agent = Agent(0, kind, (MlpEncoder(hidden=(5,)),) * len(kind))
    network = method.network(agent, SHAPES, C, 7)
    x = {m: torch.randn(B, *SHAPES[m], generator=draw) for m in kind}
    y, mask = torch.tensor([0, 1, 2, -1, 0, 1]), torch.ones(B)
    total = method.loss(network(x), y, mask, None)[0]
    found = torch.autograd.grad(total, [*network.parameters()], materialize_grads=True)
    return dict(zip(dict(network.named_parameters()), found, strict=True))


def dmml(**changes):
    return DmmlKd(DmmlKdMethod(name="dmml-kd", slices=WIDTHS, **changes))


@pytest.mark.parametrize("kind", [("a",), ("a", "b")])
def test_without_weights_all_but_the_generator_learns_as_dsgd_does(kind):
    plain = gradients(Dsgd(DsgdMethod(name="dsgd-modality", slices=WIDTHS)), kind)
    bare = gradients(dmml(common_weight=0, kd_weight=0), kind)
    for name, gradient in plain.items():
        torch.testing.assert_close(bare[name], gradient)
    assert not bare["common_head.weight"].any()  # it judges what is generated, and does not learn from that
    assert all(bare[name].any() for name in bare if name.startswith("generator."))


def test_the_generator_feels_its_own_terms_alone():
    some, other = gradients(dmml()), gradients(dmml(common_weight=3, kd_weight=0.2))
    unmoved = {name for name in some if torch.allclose(some[name], other[name])}
    specific = ("generator.", "label_head.", "encoders.m_a.synergistic.", "encoders.m_b.synergistic.")
    assert unmoved == {name for name in some if name.startswith(specific)}


def test_only_common_positions_feel_the_generator():
    """The others are specific: their rows of the encoders' last layer have the gradient of the label head alone."""
    bare, taught = (gradients(dmml(common=3, common_weight=0, kd_weight=weight)) for weight in (0, 1))
    for last in ("encoders.m_a.unique_redundant.weight", "encoders.m_b.unique_redundant.weight"):
        moved = (taught[last] - bare[last]).abs().amax(1) > 1e-7
        assert moved.tolist() == [True] * 3 + [False] * 2
    assert taught["encoders.m_a.synergistic.weight"].equal(bare["encoders.m_a.synergistic.weight"])


def test_the_generator_is_no_work_for_a_sample():
    """Agents are stacked by what their layers give for a sample."""
    agent = Agent(0, ("a", "b"), (MlpEncoder(hidden=(5,)),) * 2)
    plain, taught = (
        layer_sizes(method.network(agent, SHAPES, C, 7), SHAPES)
        for method in (Dsgd(DsgdMethod(name="dsgd-modality", slices=WIDTHS)), dmml())
    )
    assert [size for size in taught if size] == [*plain, 2 * C]  # the common head, of both modalities


class PlainDmml(PlainParse):
    """One term after the other, each from values that are numbers to it where it must not pass a gradient."""

    def _loss(self, agent, step, out, y):
        o, network = self.job.method, self.networks[agent.id]
        known = y >= 0
        if not known.any():
            return sum(p.sum() for p in network.parameters()) * 0
        y, common, generated = y[known], out.z["common"][:, known], out.z["generated"]
        loss = functional.cross_entropy(out.logits["label"][0][known], y)
        loss = loss + o.common_weight * sum(
            functional.cross_entropy(network.common_head(features), y) for features in common
        ) / len(common)
        judged = functional.linear(generated, network.common_head.weight.detach(), network.common_head.bias.detach())
        for k, label in enumerate(y):
            judgement = functional.cross_entropy(judged[label], label.expand(len(judged[label])))
            loss = loss + judgement / len(y)
            for features in common:
                points, same = generated[label], features[y == label]
                inside = self._between(features[k], same)
                among = torch.stack([self._between(point, points) for point in points]).mean()
                taught = 2 * self._between(features[k], points.detach()) - inside - among.detach()
                learnt = 2 * self._between(features[k].detach(), points) - inside.detach() - among
                loss = loss + (o.kd_weight * taught + learnt) / (len(y) * len(common))
        return loss

    @staticmethod
    def _between(one, others):
        return ((one - others).square().mean(-1) + 1e-30).sqrt().mean()


SMALL = {
    "data": {"labelled_fraction": 0.8},
    "method": {"name": "dmml-kd", "slices": WIDTHS, "kd_weight": 0.7, "generator": {"hidden": 6, "noise": 3}},
    "train": {"batch_size": 16},
    "dtype": "float64",
}


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_rounds_equal_those_of_plain_code(tmp_path, engine):
    assert largest_difference(tmp_path, SMALL | {"engine": engine}, 3, PlainDmml) < 1e-10


def test_agents_and_modalities_come_to_the_same_common_features(tmp_path):
    """Every agent's features of a class are nearer to what all have learnt to generate, if they feel the distance."""
    left = {}
    for weight in (0.0, 1.0):
        changes = SMALL | {"method": SMALL["method"] | {"kd_weight": weight}, "topology": {"kind": "complete"}}
        trainer, plan, _ = make_trainer(tmp_path, changes)
        for done in range(40):
            losses, _ = trainer.train_round(done)
        left[weight] = losses[:, -1].numpy()
    assert len(left[0.0]) == len(plan.agents)
    assert (left[1.0] < 0.5 * left[0.0]).all()


def test_a_part_that_takes_everything_is_refused(tmp_path):
    with pytest.raises(JobError, match="common: 8 leaves nothing of 8 to the other part"):
        load_job(write_job(tmp_path, {"method": {"name": "dmml-kd", "slices": WIDTHS, "common": 8}}))
