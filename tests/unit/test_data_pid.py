"""Generated data: the closed forms against a brute-force Bayes classifier, trained classifiers and counted bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from parse_mpi.data.dataset import TEST, TRAIN, Dataset
from parse_mpi.data.pid import MODALITIES, atoms, best_accuracy, generate_pid
from parse_mpi.job import PidSource

SUBSETS: list[tuple[str, ...]] = [(), ("first",), ("second",), ("first", "second")]


def brute_force_accuracy(source: PidSource, modalities: Sequence[str], samples: int) -> float:
    """The accuracy of the maximum a posteriori label, from the likelihood of every state of all hidden bits."""
    widths = (source.redundant_bits, *source.unique_bits, source.synergistic_bits, source.synergistic_bits)
    ends = np.cumsum(widths)
    states = np.array(list(product([0, 1], repeat=int(ends[-1]))))
    c, u1, u2, s1, s2 = np.split(states, ends[:-1], axis=1)
    views = {"first": np.hstack([c, u1, s1]), "second": np.hstack([c, u2, s2])}
    label_bits = np.hstack([c, u1, u2, s1 ^ s2])
    labels = np.unique(label_bits, axis=0, return_inverse=True)[1].ravel()

    rng = np.random.default_rng(1)
    drawn = rng.integers(len(states), size=samples)
    log_likelihood = np.zeros((samples, len(states)))
    for name in modalities:
        signs = 2.0 * views[name] - 1
        seen = signs[drawn] + source.noise * rng.standard_normal((samples, signs.shape[1]))
        log_likelihood -= ((seen[:, None] - signs) ** 2).sum(axis=2) / (2 * source.noise**2)
    posterior = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True)) @ np.eye(labels.max() + 1)[labels]
    return float(np.mean(posterior.argmax(axis=1) == labels[drawn]))


@pytest.mark.parametrize("modalities", SUBSETS, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize(
    "source",
    [
        PidSource(),
        PidSource(noise=1.2),
        PidSource(redundant_bits=2, unique_bits=(0, 0), synergistic_bits=0, noise=0.8),
        PidSource(redundant_bits=0, unique_bits=(2, 1), synergistic_bits=1, noise=0.7),
        PidSource(redundant_bits=0, unique_bits=(0, 0), synergistic_bits=2, noise=0.6),
    ],
    ids=["default", "noisy", "redundant", "unique", "synergistic"],
)
def test_best_accuracy_is_that_of_a_brute_force_bayes_classifier(source: PidSource, modalities: Sequence[str]) -> None:
    samples = 20_000
    expected = best_accuracy(source, modalities)
    standard_error = np.sqrt(expected * (1 - expected) / samples)
    assert brute_force_accuracy(source, modalities, samples) == pytest.approx(expected, abs=4 * standard_error)


def only(**bits: object) -> PidSource:
    """A source with the bits given, no others, and noise 1."""
    nothing = {"redundant_bits": 0, "unique_bits": (0, 0), "synergistic_bits": 0}
    return PidSource.model_validate(nothing | {"noise": 1.0} | bits)


def test_best_accuracy_known_values() -> None:
    phi1, phi_sqrt2 = 0.8413447460685429, 0.9213503964748574  # Phi(1) and Phi(sqrt 2), from tables
    assert best_accuracy(only(redundant_bits=1), MODALITIES) == pytest.approx(phi_sqrt2)
    assert best_accuracy(only(redundant_bits=1), ["second"]) == pytest.approx(phi1)
    assert best_accuracy(only(unique_bits=(1, 0)), ["first"]) == pytest.approx(phi1)
    assert best_accuracy(only(unique_bits=(1, 0)), ["second"]) == 0.5
    assert best_accuracy(only(synergistic_bits=1), ["first"]) == 0.5
    xor = best_accuracy(only(synergistic_bits=1), MODALITIES)
    assert xor == pytest.approx(phi1**2 + (1 - phi1) ** 2)
    assert best_accuracy(PidSource(noise=1e-3), MODALITIES) == 1.0
    with pytest.raises(ValueError, match="third"):
        best_accuracy(PidSource(), ["third"])


def label_bit(dataset: Dataset, index: int) -> NDArray[np.int64]:
    return dataset.labels >> (len(dataset.class_names[0]) - 1 - index) & 1


@pytest.mark.parametrize(
    ("bit", "modalities"),
    [(0, ("first",)), (0, MODALITIES), (1, ("first",)), (1, ("second",)), (2, ("second",)), (3, MODALITIES)],
)
def test_trained_classifiers_reach_the_closed_form_bit_by_bit(bit: int, modalities: tuple[str, ...]) -> None:
    """A bit is linear in the views, an XOR in the products of their features, so logistic regression is enough."""
    source = PidSource(noise=0.8, features=4, samples=30_000)
    dataset = generate_pid(source, seed=5)
    views = [dataset.modalities[name] for name in modalities]
    x = np.hstack(views) if bit < 3 else np.einsum("nf,ng->nfg", *views).reshape(source.samples, -1)
    y = label_bit(dataset, bit)
    train, test = dataset.indices(TRAIN), dataset.indices(TEST)
    reached = LogisticRegression().fit(x[train], y[train]).score(x[test], y[test])

    widths = [0, 0, 0, 0]
    widths[bit] = 1
    alone = source.model_copy(
        update={"redundant_bits": widths[0], "unique_bits": (widths[1], widths[2]), "synergistic_bits": widths[3]}
    )
    assert reached == pytest.approx(best_accuracy(alone, modalities), abs=0.015)


@pytest.mark.parametrize(
    "source",
    [
        PidSource(noise=1e-3),
        PidSource(redundant_bits=2, unique_bits=(1, 0), synergistic_bits=1, noise=1e-3),
        PidSource(redundant_bits=0, unique_bits=(0, 2), synergistic_bits=2, noise=1e-3),
    ],
)
def test_atoms_are_the_information_counted_in_noise_free_views(source: PidSource) -> None:
    dataset = generate_pid(source.model_copy(update={"samples": 40_000, "features": 6}), seed=2)
    codes = {name: codes_of(x) for name, x in dataset.modalities.items()}
    both = codes["first"] * (codes["second"].max() + 1) + codes["second"]
    first, second, joint = (mutual_information(x, dataset.labels) for x in (codes["first"], codes["second"], both))
    known = atoms(source)
    assert known["R"] + known["U1"] == pytest.approx(first, abs=0.01)
    assert known["R"] + known["U2"] == pytest.approx(second, abs=0.01)
    assert sum(known.values()) == pytest.approx(joint, abs=0.01)


def codes_of(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of the cloud that each sample lies in, where the clouds are far apart."""
    return np.unique((x @ np.array([1, 2, 3, 5, 7, 11]) * 20).round(), return_inverse=True)[1].ravel()


def mutual_information(x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    counts = np.zeros((x.max() + 1, y.max() + 1))
    np.add.at(counts, (x, y), 1)
    p = counts / counts.sum()
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0)
    seen = p > 0
    return float((p[seen] * np.log2(p[seen] / independent[seen])).sum())


def test_bits_lie_along_orthonormal_directions_of_their_own_in_each_modality() -> None:
    source = PidSource(noise=1e-3, features=10, samples=50_000)
    dataset = generate_pid(source, seed=0)
    covariances = [np.cov(x, rowvar=False) for x in dataset.modalities.values()]
    for covariance in covariances:
        np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[::-1][:3], 1, atol=0.03)
        np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[:-3], 1e-6, rtol=0.1)
    assert np.abs(covariances[0] - covariances[1]).max() > 0.1


def test_noise_has_the_stated_standard_deviation() -> None:
    source = PidSource(redundant_bits=1, unique_bits=(0, 0), synergistic_bits=0, noise=0.7, features=8, samples=20_000)
    x = generate_pid(source, seed=0).modalities["first"]
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False))
    np.testing.assert_allclose(eigenvalues[:-1], 0.49, rtol=0.06)
    assert eigenvalues[-1] == pytest.approx(1.49, rel=0.06)


def test_data_is_a_function_of_source_and_seed() -> None:
    source = PidSource(samples=500)
    dataset = generate_pid(source, seed=7)
    assert generate_pid(source, seed=7).digest() == dataset.digest()
    assert generate_pid(source, seed=8).digest() != dataset.digest()
    assert np.bincount(dataset.split).tolist() == [300, 50, 150]
    assert dataset.class_names[5] == "0101"
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in dataset.modalities.values())
