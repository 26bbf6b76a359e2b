"""Macro-F1 and calibration error against scikit-learn and their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from parse_mpi.measures.classification import BINS, calibration_error, macro_f1

pairs_of_classes = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 6)), arrays(np.int16, n, elements=st.integers(0, 6))
    )
)


@given(pairs_of_classes)
def test_macro_f1_is_that_of_scikit_learn_over_the_classes_of_the_split(classes):
    label, predicted = classes
    expected = f1_score(label, predicted, labels=np.unique(label), average="macro", zero_division=0)
    assert macro_f1(label, predicted) == pytest.approx(expected, rel=1e-12)


def defined(right, confidence):
    """Bin by bin, as Guo et al. (2017) write it."""
    total = 0.0
    for m in range(1, BINS + 1):
        inside = ((m - 1) / BINS < confidence) & (confidence <= m / BINS)
        if inside.any():
            total += inside.sum() / len(right) * abs(right[inside].mean() - confidence[inside].mean())
    return total


@given(st.data(), st.integers(1, 80))
def test_calibration_error_is_its_definition_also_at_the_edges_of_bins(data, count):
    edges = st.sampled_from([m / BINS for m in range(1, BINS + 1)])
    inside = st.floats(0, 1, exclude_min=True)
    confidence = data.draw(arrays(np.float64, count, elements=edges | inside))
    right = data.draw(arrays(np.bool_, count))
    assert calibration_error(right, confidence) == pytest.approx(defined(right, confidence), rel=1e-9, abs=1e-12)


def test_confidence_that_is_the_accuracy_has_no_error_and_certainty_about_errors_all_of_it():
    right = np.arange(100) % 4 > 0
    assert calibration_error(right, np.full(100, 0.75, np.float32)) == 0
    assert calibration_error(np.zeros(7, bool), np.ones(7, np.float32)) == 1


def test_without_samples_there_is_no_number():
    nothing = np.empty(0, np.int64)
    assert np.isnan(macro_f1(nothing, nothing))
    assert np.isnan(calibration_error(nothing > 0, np.empty(0)))
