"""The cost model: what was planted in measurements is found again, and its error is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_cases import PLANTED, draw_samples, make_measured, make_scaling

from parse_mpi.errors import ParseMpiError
from parse_mpi.run.phases import PHASES
from parse_mpi.scaling.costmodel import (
    BETWEEN,
    FARTHEST,
    PARTS,
    Demand,
    crowding,
    demand_of,
    fit,
    hold_out,
    part_seconds,
    samples_of,
)
from parse_mpi.scaling.loads import LOADS, Loads
from parse_mpi.scaling.scalingfile import Launched

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
@settings(max_examples=25, deadline=None)
def test_planted_constants_are_found(seed: int) -> None:
    model = fit(draw_samples(seed, 24, noise=0.0))
    assert model.network == "fitted"
    for key, value in PLANTED.items():
        assert model.constants[key] == pytest.approx(value, rel=1e-6), key


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_with_noise_predictions_of_new_sizes_are_as_good_as_the_noise(seed: int) -> None:
    model = fit(draw_samples(seed, 60, noise=0.05))
    errors = [model.round_s(s.demand) / s.round_s - 1 for s in draw_samples(seed + 1, 30, noise=0.0)]
    assert np.median(np.abs(errors)) < 0.06


def test_held_out_errors_are_those_of_a_fit_without_the_size() -> None:
    """Against a plain loop; and a size that is off by half shows an error of its own, which the fit hides in part."""
    samples = draw_samples(0, 12, noise=0.02)
    odd = samples[5]
    slow = {part: 2.0 * seconds for part, seconds in odd.seconds.items()}
    samples[5] = replace(odd, seconds=slow, round_s=2.0 * odd.round_s)
    held = hold_out(samples)
    for k, sample in enumerate(samples):
        without = fit([other for j, other in enumerate(samples) if j != k])
        assert held[k].predicted_s == without.round_s(sample.demand)
        assert held[k].error == pytest.approx(without.round_s(sample.demand) / sample.round_s - 1)
    assert held[5].error == pytest.approx(-0.5, abs=0.1)
    assert abs(held[5].error) > abs(fit(samples).round_s(samples[5].demand) / samples[5].round_s - 1)


def test_a_size_that_has_something_alone_can_not_be_held_out() -> None:
    samples = draw_samples(0, 8, noise=0.0, several_nodes=False)
    there = {**samples[1].demand.features, "messages_between": 5.0, "bytes_between": 1e6}
    samples[1] = replace(samples[1], demand=Demand(there, 1.0))
    held = hold_out(samples)
    assert [np.isnan(h.predicted_s) for h in held] == [k == 1 for k in range(8)]
    assert np.isnan(hold_out(samples[:1])[0].predicted_s)


@given(SEEDS, st.sampled_from([name for features in PARTS.values() for name in features]))
@settings(max_examples=60, deadline=None)
def test_more_of_anything_is_never_faster(seed: int, name: str) -> None:
    samples = draw_samples(seed, 9, noise=0.3)
    model, demand = fit(samples), samples[1].demand
    more = replace(demand, features={**demand.features, name: 3.0 * demand.features[name] + 1.0})
    assert model.round_s(more) >= model.round_s(demand)
    assert model.round_s(replace(demand, crowd=2.0 * demand.crowd)) >= model.round_s(demand)


def test_what_lies_far_outside_is_extrapolation() -> None:
    samples = draw_samples(3, 12, noise=0.0)
    model = fit(samples)
    low, high = model.ranges["work"]
    inside = {name: span[1] for name, span in model.ranges.items()}
    assert model.beyond(Demand(inside, 1.0)) == []
    assert model.beyond(Demand({**inside, "work": 0.99 * FARTHEST * high}, 1.0)) == []
    assert model.beyond(Demand({**inside, "work": 1.01 * FARTHEST * high}, 1.0)) == ["work"]
    assert model.beyond(Demand({**inside, "work": 0.99 * low / FARTHEST}, 1.0)) == ["work"]
    assert model.beyond(Demand({**inside, "messages_within": 0.0}, 1.0)) == []


def test_one_node_tells_nothing_of_the_network() -> None:
    model = fit(draw_samples(0, 8, noise=0.0, several_nodes=False))
    assert model.network == ""
    assert not any(name in model.ranges for name in BETWEEN)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ParseMpiError, match="no point of the scaling study has finished"):
        fit([])


def test_the_busiest_rank_and_node_decide() -> None:
    table = np.zeros((4, len(LOADS)))
    table[:, LOADS.index("work")] = [1, 5, 2, 2]
    table[:, LOADS.index("bytes_between")] = [10, 20, 25, 0]
    table[:, LOADS.index("messages_between")] = [1, 2, 3, 0]
    demand = demand_of(Loads.of(table), np.array([0, 0, 1, 1]), 1.0)
    assert demand.features["work"] == 5
    assert demand.features["bytes_between"] == 30  # both ranks of the first node share its network card
    assert demand.features["messages_between"] == 3 + 1  # the tree of a reduction has one step between two nodes ...
    assert demand.features["messages_within"] == 0 + 1  # ... and one inside
    assert crowding(8, 2) == 4
    assert crowding(1, 2) == 1


def test_parts_add_up_to_the_round_of_the_slowest_rank() -> None:
    seconds = np.random.default_rng(0).uniform(0, 1, (20, 3, len(PHASES)))
    measured = make_measured(seconds, ["a", "a", "b"])
    parts = part_seconds(measured)
    every = [PHASES.index(name) for name in ("local_steps", "pack", "mix", "wait", "agree")]
    np.testing.assert_allclose(sum(parts.values()), seconds[:, :, every].sum(2).max(1))
    np.testing.assert_allclose(sum(parts.values()), measured.round_seconds())
    assert parts["exchange"].min() >= 0
    worked = seconds[:, :, every[:3]].sum(2)
    np.testing.assert_allclose(parts["local steps"] + parts["mixing"], worked.max(1))


def test_launches_of_one_size_are_one_sample_and_crowded_cores_are_told() -> None:
    seconds = np.ones((4, 4, len(PHASES)))
    results = [make_measured(factor * seconds, ["a"] * 4, cores=2, work=7.0) for factor in (1.0, 3.0, 2.0)]
    curves = ("strong", "strong", "weak")
    launches = [
        Launched(c, 4, 1, 8, k, "finished", result=r) for k, (c, r) in enumerate(zip(curves, results, strict=True))
    ]
    (sample,) = samples_of(make_scaling(launches, {"strong": "strong", "weak": "weak"}))
    assert sample.key == (4, 1, 8)
    assert sample.demand.crowd == 2.0
    assert sample.seconds == {"local steps": 2.0, "mixing": 4.0, "exchange": 4.0}
    assert sample.round_s == 10.0
