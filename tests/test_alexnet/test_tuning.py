"""Tuned weights of an average: the search of ``avg-valid.py``, written out, and its properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alexnet.metrics import top_labels
from alexnet.tuning import tune_coefficients

Floats = NDArray[np.float32]


def some_probabilities(models: int, images: int, classes: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    # Multiples of 1/64, so that sums are often equal.
    return (random.integers(0, 65, (models, images, classes)) / 64).astype(np.float32)


def wrong(weights: list[float], probabilities: Floats, labels: NDArray[np.int64], k: int) -> int:
    sums = np.einsum("m,mnc->nc", np.array(weights), probabilities.astype(np.float64))
    best = top_labels(sums.astype(np.float32), k)
    return int((best != labels[:, None]).all(axis=1).sum())


def searched(probabilities: Floats, labels: NDArray[np.int64], k: int) -> tuple[list[float], int]:
    """The search as the source describes it: every value of every weight, one at a time."""
    weights = [0.5] * len(probabilities)
    best = wrong(weights, probabilities, labels, k)
    for _ in range(5):
        before = best
        for model in range(len(weights)):
            for value in np.arange(21) / 20:
                tried = [*weights[:model], float(value), *weights[model + 1 :]]
                if any(tried) and wrong(tried, probabilities, labels, k) < best:
                    best, weights = wrong(tried, probabilities, labels, k), tried
        if best == before:
            break
    return weights, best


@settings(max_examples=40)
@given(
    models=st.integers(1, 3),
    images=st.integers(1, 20),
    classes=st.sampled_from([2, 5, 6, 9]),
    seed=st.integers(0, 10**6),
)
def test_the_search_is_that_of_the_source(
    models: int, images: int, classes: int, seed: int
) -> None:
    probabilities = some_probabilities(models, images, classes, seed)
    labels = np.random.default_rng(seed + 1).integers(0, classes, images)
    tuned = tune_coefficients(probabilities, labels)
    k = 5 if classes > 5 else 1
    assert tuned.wrong_with_equal == wrong([0.5] * models, probabilities, labels, k)
    assert tuned.wrong <= tuned.wrong_with_equal
    weights, best = searched(probabilities, labels, k)
    # Float32 decides some ties differently than float64 does.
    assert tuned.wrong == pytest.approx(best, abs=1)
    assert len(tuned.coefficients) == len(weights)
    assert any(tuned.coefficients)
    assert all(0 <= w <= 1 and round(20 * w) / 20 == w for w in tuned.coefficients)


def test_a_model_that_guesses_gets_little_weight() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 10, 2000)
    good = random.random((2000, 10), np.float32)
    good[np.arange(2000), labels] += 0.6
    noise = 3 * random.random((2000, 10), np.float32)
    tuned = tune_coefficients(np.stack([noise, good]), labels)
    assert tuned.wrong < 0.7 * tuned.wrong_with_equal
    assert tuned.coefficients[0] < 0.2 * tuned.coefficients[1]
