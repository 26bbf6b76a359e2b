"""Intervals and p-values against closed forms, exhaustive bootstraps and simulations whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t, ttest_1samp

from parse_mpi.measures.statistics import Pairs, compare_pairs, holm


def drawn(rng, seeds, n, *, truth=0.0, of_seed=0.0, of_sample=0.1, common=False):
    """Pairs with a known mean, chance in seeds and in samples; common: all seeds have the same samples."""
    shared = rng.normal(0, of_sample, n)
    own = (shared if common else rng.normal(0, of_sample, n) for _ in range(seeds))
    noise = 0.1 if common else 0.0
    return Pairs(
        tuple(truth + rng.normal(0, of_seed) + values + rng.normal(0, noise, n) for values in own), same_samples=common
    )


def variance_of_seeds(pairs):
    """Of the first level: the unbiased estimate of what a mean of S seeds varies by."""
    return np.var([values.mean() for values in pairs.by_seed], ddof=1) / len(pairs.by_seed)


# -- the bootstrap ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0, 1], [1, -1, 1], [0.5, 0.5, -0.25, 1]])
def test_one_seed_is_the_bootstrap_over_all_ways_to_draw(values):
    means = np.array([np.mean(chosen) for chosen in itertools.product(values, repeat=len(values))])
    beyond = (means * np.sign(np.mean(values)) <= 1e-12).mean()
    made = compare_pairs([Pairs((np.array(values, float),))], draws=20_000)
    assert made.estimate == pytest.approx(np.mean(values))
    assert made.p == pytest.approx(min(1, 2 * beyond), abs=0.012)
    assert made.standard_error == pytest.approx(means.std(), rel=0.02)
    assert (made.seeds, made.samples) == (1, len(values))


def test_seeds_with_samples_of_their_own_against_the_variance_in_closed_form():
    rng = np.random.default_rng(0)
    pairs = Pairs(tuple(rng.normal(0.02 * k, 0.2 + 0.1 * k, 50 + 30 * k) for k in range(5)))
    within = np.mean([values.var() / len(values) for values in pairs.by_seed]) / 5
    made = compare_pairs([pairs])
    assert made.standard_error == pytest.approx(np.sqrt(variance_of_seeds(pairs) + within), rel=0.02)
    assert made.estimate == pytest.approx(np.mean([values.mean() for values in pairs.by_seed]))
    assert made.low < made.estimate < made.high
    assert made.detectable == pytest.approx((made.high - made.low) / 2 + 0.841621 * made.standard_error, rel=1e-5)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99, 0.998])
@pytest.mark.parametrize("seeds", [6, 10])
def test_few_seeds_have_the_tails_of_students_t_at_every_level(seeds, level):
    """One number for each seed: the interval is that of the t-test, and its end has the p of its level."""
    values = norm.ppf((np.arange(seeds) + 0.5) / seeds)
    made = compare_pairs([Pairs(tuple(values[:, None]))], level=level)
    error = np.std(values, ddof=1) / np.sqrt(seeds)
    assert made.high == pytest.approx(t.ppf((1 + level) / 2, seeds - 1) * error, rel=0.1)
    assert made.low == pytest.approx(-made.high, rel=0.1)
    shifted = values + made.high
    moved = compare_pairs([Pairs(tuple(shifted[:, None]))], level=level)
    assert moved.p == pytest.approx(ttest_1samp(shifted, 0).pvalue, rel=0.5)


@given(st.integers(0, 200), st.sampled_from([2, 3, 5]), st.sampled_from([0.02, 0.05, 0.08]))
def test_p_is_small_where_the_interval_leaves_out_zero_and_only_there(seed, seeds, truth):
    rng = np.random.default_rng(seed)
    made = compare_pairs([Pairs(tuple(truth + 0.02 * rng.standard_exponential((seeds, 8))))], draws=999)
    assert (made.p <= 0.05 - 0.004) <= (made.low > 0)
    assert (made.low > 0) <= (made.p <= 0.05 + 0.004)


def test_seeds_with_the_same_samples_against_the_variance_in_closed_form():
    """The mean over drawn seeds of one drawn set of samples: E[c' C c] / n with c = counts of the seeds / S."""
    pairs = drawn(np.random.default_rng(1), 4, 120, of_seed=0.02, of_sample=0.3, common=True)
    covariance = np.cov(np.stack(pairs.by_seed), ddof=0)
    expected = np.full((4, 4), 3 / 4**3) + np.eye(4) * ((2 - 1 / 4) / 4**2 - 3 / 4**3)
    within = (expected * covariance).sum() / 120
    made = compare_pairs([pairs])
    assert made.standard_error == pytest.approx(np.sqrt(variance_of_seeds(pairs) + within), rel=0.02)
    apart = compare_pairs([Pairs(pairs.by_seed)])
    assert apart.standard_error < made.standard_error


def test_settings_are_drawn_independently():
    rng = np.random.default_rng(2)
    parts = [drawn(rng, 4, 60, truth=0.1, of_seed=0.03) for _ in range(3)]
    alone = [compare_pairs([part], seed=k) for k, part in enumerate(parts)]
    made = compare_pairs(parts)
    assert made.estimate == pytest.approx(np.mean([part.estimate for part in alone]))
    assert made.standard_error == pytest.approx(np.sqrt(sum(part.standard_error**2 for part in alone)) / 3, rel=0.03)
    assert (made.seeds, made.samples) == (4, 720)


def test_a_wider_level_gives_a_wider_interval_around_the_same_estimate():
    pairs = drawn(np.random.default_rng(3), 5, 80, of_seed=0.02)
    narrow, wide = compare_pairs([pairs]), compare_pairs([pairs], level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert wide.estimate == narrow.estimate


def test_the_same_seed_gives_the_same_numbers_and_swapped_methods_the_mirror_image():
    pairs = drawn(np.random.default_rng(4), 3, 40, truth=0.03)
    made = compare_pairs([pairs])
    assert made == compare_pairs([pairs])
    assert made != compare_pairs([pairs], seed=1)
    mirrored = compare_pairs([Pairs(tuple(-values for values in pairs.by_seed))])
    assert (mirrored.estimate, mirrored.p) == pytest.approx((-made.estimate, made.p), rel=0.3)
    assert (mirrored.low, mirrored.high) == pytest.approx((-made.high, -made.low), abs=0.2 * made.standard_error)


# -- degenerate pairs ------------------------------------------------------------------------------------------------


def test_equal_methods_differ_by_nothing_for_sure():
    made = compare_pairs([Pairs((np.zeros(10), np.zeros(12)))])
    assert (made.estimate, made.low, made.high, made.p, made.standard_error) == (0, 0, 0, 1, 0)


def test_a_constant_difference_has_no_error_and_the_smallest_p_there_is():
    made = compare_pairs([Pairs((np.full(7, 0.1), np.full(9, 0.1)))], draws=999)
    assert (made.low, made.high, made.p) == pytest.approx((0.1, 0.1, 2 / 1000))


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least one seed"):
        Pairs(())
    with pytest.raises(ValueError, match="at least one test sample"):
        Pairs((np.zeros(3), np.zeros(0)))


# -- coverage --------------------------------------------------------------------------------------------------------

WORLDS = {
    "seeds matter most": {"seeds": 10, "n": 200, "of_seed": 0.02, "of_sample": 0.1},
    "samples matter most": {"seeds": 5, "n": 100, "of_seed": 0.0, "of_sample": 0.3},
    "three seeds": {"seeds": 3, "n": 100, "of_seed": 0.03, "of_sample": 0.1},
    "the same samples in all seeds": {"seeds": 10, "n": 200, "of_seed": 0.01, "of_sample": 0.4, "common": True},
}


def covered(world, repetitions, draws):
    """Share of simulated studies whose interval holds the truth, and shares of p < .05 and < .01 for nothing."""
    rng, hits, alarms = np.random.default_rng(5), 0, np.zeros(2)
    for seed in range(repetitions):
        pairs = drawn(rng, **world)
        made = compare_pairs([pairs], seed=seed, draws=draws)
        hits += made.low <= 0 <= made.high
        alarms += made.p < np.array([0.05, 0.01])
    return hits / repetitions, *(alarms / repetitions)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_intervals_hold_the_truth_about_as_often_as_they_say(world):
    """.88 of 100 has a probability of .002 at a coverage of .95."""
    hits, alarms, _ = covered(world, 100, 300)
    assert hits >= 0.88
    assert alarms <= 0.12


@pytest.mark.soak
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_intervals_hold_the_truth_as_often_as_they_say(world):
    hits, alarms, grave_alarms = covered(world, 1500, 1000)
    assert hits >= 0.935
    assert alarms <= 0.065
    assert grave_alarms <= 0.015


# -- Holm ------------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = np.array(holm(p_values))
    raw = np.array(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(raw * len(raw), 1)).all()
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()
    first_step = raw.min() * len(raw)
    assert adjusted.min() == pytest.approx(min(first_step, 1))
