"""Weight steps of FedEPA by themselves: batches of labelled samples, bad values, the end of the first phase."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parse_mpi.agents.personal import FIRST_PHASE, WINDOW, PersonalAggregation
from parse_mpi.agents.rows import SliceRows
from parse_mpi.data.arrival import arrived
from parse_mpi.data.sampler import LabelledSampler
from parse_mpi.job import FedepaMethod, Job, LearntWeights
from parse_mpi.methods.layout import ParameterSpan, SliceLayout


def job(batch_size=4, stream=None, **changes):
    return Job.model_validate(
        {
            "name": "small",
            "data": {"stream": stream},
            "agents": [{"modalities": ["top"], "count": 3}],
            "topology": {"kind": "ring"},
            "method": {"name": "fedepa"},
            "train": {"batch_size": batch_size},
            **changes,
        }
    )


def labels_of(sizes, seed):
    """Labels of agents with so many samples, half of them unknown and at least one known."""
    draw = np.random.default_rng(seed)
    own = [np.where(draw.random(size) < 0.5, draw.integers(0, 3, size), -1) for size in sizes]
    for labels in own:
        labels[draw.integers(len(labels))] = 1
    return own


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 99))
def test_batches_are_labelled_samples_of_the_agent_whoever_else_is_there(sizes, batch_size, seed):
    sizes, ids, own = np.array(sizes), np.arange(len(sizes)) * 3 + 1, labels_of(sizes, seed)
    together = LabelledSampler(job(batch_size), np.concatenate(own), sizes, ids)
    for round_index, step in ((1, 0), (1, 1), (2, 0)):
        position, mask = together.batch(round_index, step)
        for row, labels in enumerate(own):
            chosen = position[row][mask[row]]
            assert len(set(chosen)) == len(chosen) == min(batch_size, (labels >= 0).sum())
            assert (labels[chosen] >= 0).all()
            alone = LabelledSampler(job(batch_size), labels, sizes[row : row + 1], ids[row : row + 1])
            position_alone, mask_alone = alone.batch(round_index, step)
            assert position_alone[0][mask_alone[0]].tolist() == chosen.tolist()


def test_batches_differ_by_round_and_step():
    sampler = LabelledSampler(job(), np.ones(40, np.int64), np.array([40]), np.array([0]))
    drawn = [tuple(sampler.batch(r, s)[0][0]) for r in range(1, 6) for s in range(4)]
    assert len(set(drawn)) == 20


def test_a_label_that_has_yet_to_arrive_is_not_used():
    stream = {"start": 0.2, "rounds": 8, "order": "random"}
    own = [np.array([-1] * 6 + [2, -1, 0, 1]), np.array([1, -1, 2, 0, -1, -1, 1, 1, 1, 1])]
    sizes, with_stream = np.array([10, 10]), job(stream=stream)
    sampler = LabelledSampler(with_stream, np.concatenate(own), sizes, np.array([0, 1]))
    for round_index in range(9):
        there = arrived(sizes, with_stream.data.stream, round_index)
        position, mask = sampler.batch(round_index, 0)
        for row, labels in enumerate(own):
            known = np.flatnonzero(labels[: there[row]] >= 0)
            chosen = position[row][mask[row]]
            assert set(chosen) <= (set(known) if len(known) else {0})
            assert len(chosen) == min(4, max(1, len(known)))
        if round_index == 0:
            assert own[0][position[0][mask[0]]].tolist() == [-1]  # it has no label yet, and learns nothing


def aggregation(weights, count=3, width=2):
    """Two slices of agents that were at 0 and are mixed to 1, everything taken so far; the second lacks agent 0."""
    layout = SliceLayout((ParameterSpan("p", (width,), 0, width),))
    learnt = isinstance(weights, LearntWeights)
    slices = []
    for name, agents in (("one", range(count)), ("two", range(1, count))):
        state = {"taken": width} if learnt else {}
        rows = SliceRows(name, layout, list(agents), 0, torch.float64, torch.device("cpu"), state=state)
        slices.append((rows, torch.tensor(list(agents))))
    sampler = LabelledSampler(job(), np.ones(5 * count, np.int64), np.full(count, 5), np.arange(count))
    made = PersonalAggregation(weights, slices, sampler)
    made.hold()
    for rows, _ in slices:
        rows.local.fill_(1)
    return made, [rows for rows, _ in slices]


def test_an_agent_with_a_value_that_is_not_finite_keeps_all_its_weights():
    weights = LearntWeights(rate=0.25)
    made, (one, two) = aggregation(weights)

    def gradients(position, mask):
        one.gradients.fill_(1)
        two.gradients.fill_(1)
        two.gradients[0, 1] = torch.inf  # of agent 1
        return torch.tensor([0.5, 0.5, torch.nan], dtype=torch.float64)

    made.take(FIRST_PHASE + 1, gradients)
    assert one.state["taken"].tolist() == one.local.tolist() == [[0.75] * 2, [1.0] * 2, [1.0] * 2]
    assert two.state["taken"].tolist() == two.local.tolist() == [[1.0] * 2, [1.0] * 2]


def test_weights_stay_between_0_and_1_whatever_the_slope():
    made, (one, two) = aggregation(LearntWeights(rate=1e9, steps=3))

    def gradients(position, mask):
        for rows in (one, two):
            rows.gradients[:, 0], rows.gradients[:, 1] = 1e300, -1e300
        return torch.ones(3, dtype=torch.float64)

    made.take(FIRST_PHASE + 1, gradients)
    assert one.state["taken"].tolist() == [[0.0, 1.0]] * 3
    assert torch.equal(one.local, one.state["taken"])
    assert made.statistics()["two"][1:].tolist() == [[0.5, 0.5, 0.5, 0.5]] * 2
    assert np.isnan(made.statistics()["two"][0]).all()


def test_where_mixing_changed_nothing_a_slope_beyond_all_bounds_changes_no_weight():
    made, (one, two) = aggregation(LearntWeights(rate=1e9))
    one.local[:, 0] = two.local[:, 0] = 0

    def gradients(position, mask):
        one.gradients.fill_(1e300)
        two.gradients.fill_(1e300)
        return torch.ones(3, dtype=torch.float64)

    made.take(FIRST_PHASE + 1, gradients)
    assert one.state["taken"].tolist() == [[1.0, 0.0]] * 3


def test_each_agent_ends_its_first_phase_when_its_own_losses_settle():
    weights = LearntWeights(rate=0.001, first_steps=40, steady=0.05)
    made, (one, two) = aggregation(weights)
    losses = [
        [1.0] * 40,
        [1.0, 0.0] * 10 + [0.5] * 20,
        [1.0, 0.0] * 20,
    ]
    asked = iter(np.transpose(losses))

    def gradients(position, mask):
        one.gradients.fill_(1)
        two.gradients.fill_(1)
        return torch.from_numpy(next(asked).copy())

    made.take(0, gradients)
    assert (one.state["taken"] == 1).all()  # nothing is learnt in the first round
    made.take(FIRST_PHASE, gradients)
    steps = [next(k for k in range(WINDOW, 41) if k == 40 or np.std(own[k - WINDOW : k]) < 0.05) for own in losses]
    assert steps == [10, 30, 40]
    torch.testing.assert_close(one.state["taken"][:, 0], 1 - 0.001 * torch.tensor(steps, dtype=torch.float64))


def test_a_fixed_number_is_taken_of_all():
    made, (one, two) = aggregation(0.25)
    made.take(5, None)
    assert (one.local == 0.25).all()
    assert (two.local == 0.25).all()
    assert one.matrices().keys() == {"parameters"}


@pytest.mark.parametrize(("rounds", "steps"), [(0, 0), (1, 0), (2, 50), (3, 51), (10, 58)])
def test_steps_of_the_first_rounds(rounds, steps):
    assert LearntWeights().most_steps(rounds) == steps


def test_both_parts_of_a_latent_vector_have_room():
    assert FedepaMethod(name="fedepa").aligned_width == 96
    with pytest.raises(ValueError, match="leaves nothing of 192"):
        FedepaMethod(name="fedepa", aligned=192)


@pytest.mark.parametrize("name", ["d2", "gradient-tracking"])
def test_optimisers_that_need_the_mean_are_refused(name):
    train = {"optimiser": {"name": name}, "order": "consensus" if name == "gradient-tracking" else "adapt-then-combine"}
    with pytest.raises(ValueError, match="nothing but average"):
        job(train=train)
    assert job(train=train, method={"name": "fedepa", "weights": 1.0})
