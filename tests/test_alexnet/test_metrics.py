"""Losses, errors and averages against simple computations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from alexnet.metrics import (
    ConfusedPair,
    LossAndErrors,
    average,
    calibrate,
    confused_pairs,
    confusion,
    count_errors,
    top_labels,
)

Probabilities = NDArray[np.float32]


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Probabilities, NDArray[np.int64]]:
    """Rows that sum to 1, with ties, and labels."""
    images, classes = draw(st.integers(1, 8)), draw(st.integers(1, 9))
    weights = st.lists(st.integers(0, 3), min_size=classes, max_size=classes)
    rows = np.array([draw(weights) for _ in range(images)], np.float64)
    rows[rows.sum(axis=1) == 0] = 1
    labels = [draw(st.integers(0, classes - 1)) for _ in range(images)]
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32), np.array(labels)


@given(predictions())
def test_loss_and_errors_of_a_batch(batch: tuple[Probabilities, NDArray[np.int64]]) -> None:
    probabilities, labels = batch
    top1_wrong = top5_wrong = 0
    loss = 0.0
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(len(row)), key=lambda k, row=row: (-row[k], k))  # type: ignore[misc]
        top1_wrong += ranking[0] != label
        top5_wrong += label not in ranking[:5]
        loss += -math.log(max(row[label], 1e-12))
    errors = LossAndErrors()
    errors.count(probabilities, labels)
    of_labels = count_errors(top_labels(probabilities), labels)
    for counts in (errors, of_labels):
        assert counts.images == len(labels)
        assert (counts.top1_wrong, counts.top5_wrong) == (top1_wrong, top5_wrong)
    assert errors.loss == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert errors.top1_error == pytest.approx(100 * top1_wrong / len(labels))
    assert errors.top5_error == pytest.approx(100 * top5_wrong / len(labels))
    assert errors.mean_loss == pytest.approx(loss / len(labels), rel=1e-6, abs=1e-6)


@given(predictions(), st.integers(0, 8))
def test_sums_of_parts(batch: tuple[Probabilities, NDArray[np.int64]], cut: int) -> None:
    probabilities, labels = batch
    whole, first, second = LossAndErrors(), LossAndErrors(), LossAndErrors()
    whole.count(probabilities, labels)
    first.count(probabilities[:cut], labels[:cut])
    second.count(probabilities[cut:], labels[cut:])
    first.add(second)
    assert (first.images, first.top1_wrong, first.top5_wrong) == (
        whole.images,
        whole.top1_wrong,
        whole.top5_wrong,
    )
    assert first.loss == pytest.approx(whole.loss)


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6])
def test_with_five_classes_or_less_there_are_no_top5_errors(classes: int) -> None:
    probabilities = np.linspace(0.1, 0.9, classes, dtype=np.float32)[None]
    assert top_labels(probabilities).tolist() == [list(range(classes))[::-1][:5]]
    errors = LossAndErrors()
    errors.count(probabilities, np.array([0]))
    assert errors.top5_wrong == (classes > 5)


def test_equal_probabilities_are_in_label_order() -> None:
    all_equal = np.full((2, 8), 0.125, np.float32)
    assert top_labels(all_equal).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert top_labels(all_equal, 2).tolist() == [[0, 1]] * 2
    two_pairs = np.array([[0.1, 0.3, 0.2, 0.3, 0.1]], np.float32)
    assert top_labels(two_pairs, 4).tolist() == [[1, 3, 2, 0]]


def test_the_loss_is_finite_if_the_true_class_has_probability_0() -> None:
    errors = LossAndErrors()
    errors.count(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert errors.loss == pytest.approx(-math.log(1e-12))


def test_average_is_the_mean_in_double_precision() -> None:
    random = np.random.default_rng(0)
    parts = [random.random((5, 7), np.float32) for _ in range(10)]
    mean = average(parts)
    assert mean.dtype == np.float32
    expected = sum(part.astype(np.float64) for part in parts) / 10
    np.testing.assert_array_equal(mean, np.asarray(expected, np.float32))


def test_confusion_counts_pairs() -> None:
    random = np.random.default_rng(1)
    labels, predicted = random.integers(0, 4, (2, 300))
    counts = confusion(labels, predicted, 5)
    assert counts.shape == (5, 5)
    for row in range(5):
        for column in range(5):
            assert counts[row, column] == ((labels == row) & (predicted == column)).sum()


def test_confused_pairs_largest_first() -> None:
    counts = np.array([[5, 2, 0], [4, 9, 1], [0, 2, 7]])
    pairs = [(pair.true, pair.predicted, pair.images) for pair in confused_pairs(counts, 9)]
    assert pairs == [(1, 0, 4), (0, 1, 2), (2, 1, 2), (1, 2, 1)]
    assert confused_pairs(counts, 1) == [ConfusedPair(1, 0, 4)]
    assert confused_pairs(np.diag([3, 4]), 5) == []


def test_calibration_by_hand() -> None:
    """Two bins: .4 and .5 (the upper end) with one of two right, and .9 three times, all right."""
    confidence = np.array([0.4, 0.5, 0.9, 0.9, 0.9], np.float32)
    correct = np.array([True, False, True, True, True])
    calibration = calibrate(confidence, correct, bins=2)
    assert calibration.images.tolist() == [2, 3]
    np.testing.assert_allclose(calibration.confidence, [0.45, 0.9], rtol=1e-6)
    np.testing.assert_allclose(calibration.accuracy, [0.5, 1.0])
    assert calibration.error == pytest.approx((2 * 0.05 + 3 * 0.1) / 5, abs=1e-6)


def test_empty_bins_and_the_ends_of_calibration() -> None:
    calibration = calibrate(np.array([0.0, 1.0], np.float32), np.array([False, True]))
    assert calibration.images.tolist() == [1] + [0] * 13 + [1]
    assert np.isnan(calibration.accuracy[1:14]).all()
    assert calibration.error == 0
