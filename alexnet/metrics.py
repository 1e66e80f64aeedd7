"""Top-k errors, averages of views and of models, the confusion matrix, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP_K = 5


def has_top5(classes: int) -> bool:
    """Whether there are so many classes that the top-5 error says anything."""
    return classes > TOP_K


CALIBRATION_BINS = 15


def top_labels(probabilities: NDArray[np.float32], k: int = TOP_K) -> NDArray[np.int64]:
    """(N, K) probabilities → (N, min(k, K)) labels, best first; equal ones in label order."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def average(predictions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of several models' or views' probabilities, each (N, K)."""
    mean: NDArray[np.float64] = np.stack(predictions).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


@dataclass(slots=True)
class ErrorCounts:
    """How many images are classified wrongly."""

    images: int = 0
    top1_wrong: int = 0
    """Images whose best label is wrong."""
    top5_wrong: int = 0
    """Images whose true label is not among the five best."""

    @property
    def top1_error(self) -> float:
        """``top1_wrong`` in per cent of the images."""
        return 100 * self.top1_wrong / self.images

    @property
    def top5_error(self) -> float:
        """``top5_wrong`` in per cent of the images."""
        return 100 * self.top5_wrong / self.images


@dataclass(slots=True)
class LossAndErrors(ErrorCounts):
    """The same with the loss; sums over batches and workers."""

    loss: float = 0.0
    """Sum of cross-entropies, nats."""

    def count(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Add a batch: (N, K) probabilities and (N,) true labels."""
        true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        loss = -float(np.log(np.maximum(true, 1e-12)).sum())
        errors = count_errors(top_labels(probabilities), labels)
        self.add(LossAndErrors(errors.images, errors.top1_wrong, errors.top5_wrong, loss))

    def add(self, other: "LossAndErrors") -> None:
        """Add another one's sums."""
        self.images += other.images
        self.loss += other.loss
        self.top1_wrong += other.top1_wrong
        self.top5_wrong += other.top5_wrong

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self.loss / self.images


def count_errors(best_labels: NDArray[np.int64], labels: NDArray[np.int64]) -> ErrorCounts:
    """Count the errors of predicted labels.

    Args:
        best_labels: (N, ``TOP_K``), best first; fewer columns if there are fewer classes.
        labels: (N,), the true ones.
    """
    correct = best_labels == labels[:, None]
    return ErrorCounts(
        images=len(labels),
        top1_wrong=int((~correct[:, 0]).sum()),
        top5_wrong=int((~correct.any(axis=1)).sum()),
    )


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """(K, K): how many images of one class (row) are classified as another (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """A class and another one that its images are classified as."""

    true: int
    predicted: int
    images: int
    """Images of the class ``true`` that are classified as ``predicted``."""


def confused_pairs(counts: NDArray[np.int64], most: int) -> list[ConfusedPair]:
    """The ``most`` largest counts outside the diagonal of a confusion matrix, largest first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [ConfusedPair(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How often predictions are right, by their probability: bins of equal width from 0 to 1."""

    images: NDArray[np.int64]
    """(bins,)."""
    confidence: NDArray[np.float64]
    """(bins,): mean probability of the best label, NaN in an empty bin."""
    accuracy: NDArray[np.float64]
    """(bins,): fraction of the images whose best label is right, NaN in an empty bin."""

    @property
    def error(self) -> float:
        """The expected calibration error (ECE), a fraction.

        The mean of |accuracy - confidence| over the bins, weighted with their images.
        """
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        return float((gaps * self.images).sum() / self.images.sum())


def calibrate(
    confidence: NDArray[np.float32], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> Calibration:
    """Group predictions by their probability; a bin contains its upper end.

    Args:
        confidence: (N,), the probability of each image's best label.
        correct: (N,), whether it is right.
        bins: number of bins.
    """
    number = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    images = np.bincount(number, minlength=bins)
    count = np.where(images, images, np.nan)
    return Calibration(
        images,
        np.bincount(number, confidence, bins) / count,
        np.bincount(number, correct, bins) / count,
    )
