"""Retrieval against scikit-learn's average precision and plain sorting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from parse_mpi.measures.retrieval import BLOCK, MEASURES, RECALLED, retrieval


@pytest.mark.parametrize("count", [1, 40, BLOCK, 2 * BLOCK + 3])
def test_map_is_that_of_scikit_learn_for_each_query(count):
    draw = np.random.default_rng(count)
    label = draw.integers(0, 5, count)
    query, gallery = draw.normal(size=(count, 8)) + 2 * label[:, None], draw.normal(size=(count, 8)) + label[:, None]
    similarity = cosine_similarity(query, gallery)
    expected = [average_precision_score(label == own, row) for own, row in zip(label, similarity, strict=True)]
    made = dict(zip(MEASURES, retrieval(query, gallery, label), strict=True))
    assert made["map"] == pytest.approx(np.mean(expected), rel=1e-12)
    nearer = (similarity > similarity.diagonal()[:, None]).sum(1)
    for k in RECALLED:
        assert made[f"recall@{k}"] == (nearer < k).mean()


def defined(query, gallery, label):
    """Query after query, with Python's stable sort."""

    def cosine(x, y):
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        return x @ y / norms if norms else 0.0

    places, precisions = [], []
    for j, x in enumerate(query):
        ranked = sorted(range(len(label)), key=lambda k: -round(cosine(x, gallery[k]), 9))
        places.append(ranked.index(j))
        hits = [place for place, k in enumerate(ranked, 1) if label[k] == label[j]]
        precisions.append(np.mean([found / place for found, place in enumerate(hits, 1)]))
    return [*((np.array(places) < k).mean() for k in RECALLED), np.mean(precisions)]


@given(st.data(), st.integers(1, 25))
def test_ties_are_broken_by_the_order_of_rows(data, count):
    """Small whole numbers: many rows point the same way, and some nowhere."""
    whole = arrays(np.float32, (count, 2), elements=st.integers(-1, 2))
    query, gallery = data.draw(whole), data.draw(whole)
    label = data.draw(arrays(np.int16, count, elements=st.integers(0, 2)))
    np.testing.assert_allclose(retrieval(query, gallery, label), defined(query, gallery, label), rtol=1e-12)


def test_equal_rows_of_any_width_are_ties():
    """The first of many copies is found first, whatever rounding does to their similarities."""
    draw = np.random.default_rng(0)
    row = draw.normal(size=37).astype(np.float32)
    made = retrieval(draw.normal(size=(300, 37)), np.tile(row, (300, 1)), np.arange(300))
    np.testing.assert_allclose(made[:3], [k / 300 for k in RECALLED])
    assert made[3] == pytest.approx((1 / np.arange(1, 301)).mean())


def test_the_length_of_vectors_does_not_count():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(50, 4))
    made = retrieval(x, x * draw.uniform(0.1, 10, (50, 1)), np.arange(50) % 3)
    assert made[0] == 1


def test_without_samples_there_is_no_number():
    assert np.isnan(retrieval(np.empty((0, 3)), np.empty((0, 3)), np.empty(0, np.int64))).all()
