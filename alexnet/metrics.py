"""Top-k errors, averages of views and of models, and who is taken for whom."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOP = 5


def top_labels(probabilities: NDArray[np.float32], k: int = TOP) -> NDArray[np.int64]:
    """(N, K) probabilities → (N, min(k, K)) labels, best first; equal ones in label order."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :k]


def average(predictions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of several models' or views' probabilities, each (N, K)."""
    mean: NDArray[np.float64] = np.stack(predictions).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


@dataclass(slots=True)
class Errors:
    """Counts that add up over batches and workers."""

    images: int = 0
    loss: float = 0.0
    """Sum of cross-entropies, nats."""
    top1_wrong: int = 0
    top5_wrong: int = 0

    def count(self, probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Count (N, K) probabilities against (N,) labels."""
        best = top_labels(probabilities) == labels[:, None]
        self.images += len(labels)
        self.top1_wrong += int((~best[:, 0]).sum())
        self.top5_wrong += int((~best.any(axis=1)).sum())
        truth = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        self.loss -= float(np.log(np.maximum(truth, 1e-12)).sum())

    def add(self, other: "Errors") -> None:
        """Count all that another one has counted."""
        self.images += other.images
        self.loss += other.loss
        self.top1_wrong += other.top1_wrong
        self.top5_wrong += other.top5_wrong

    @property
    def top1_error(self) -> float:
        """Per cent of the images whose best label is wrong."""
        return 100 * self.top1_wrong / self.images

    @property
    def top5_error(self) -> float:
        """Per cent of the images whose true label is not among the five best."""
        return 100 * self.top5_wrong / self.images

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self.loss / self.images


def confusion(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """(K, K): how often images of one class (row) were taken for another (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts
