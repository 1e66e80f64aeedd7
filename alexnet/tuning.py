"""The weights of several models in an average, tuned as ``avg-valid.py`` of the 2012 source does.

It minimizes the top-5 error on validation images by one weight at a time. The error of the average
on the same images is then a little too low: the weights were chosen for it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet.metrics import TOP_K, has_top5

BY_MODEL = pa.field("by_model", pa.list_(pa.float32()))
"""Of each image: (models, 2, classes) probabilities, the mean of ten views and the centre view."""

STEPS = 20
"""A weight is a multiple of 1/20, from 0 to 1."""
START = 0.5
PASSES = 5
"""How often every weight is tried, at most."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """Weights, and how many images are classified wrongly with them."""

    coefficients: tuple[float, ...]
    wrong: int
    wrong_with_equal: int
    """With equal weights."""


def tune_coefficients(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64], k: int | None = None
) -> Tuned:
    """Weights for which the true label is most often among the ``k`` best.

    In each pass every model's weight in turn is set to the value with the fewest errors, if they
    are fewer than before. Of several such values, the first is taken. It ends with the first pass
    without an improvement.

    Args:
        probabilities: (models, N, classes).
        labels: (N,), the true ones.
        k: by default 5, or 1 with five classes or fewer.
    """
    k = k or (TOP_K if has_top5(probabilities.shape[2]) else 1)
    weights = np.full(len(probabilities), START, np.float32)
    best = equal = _wrong(_weighted(weights, probabilities), labels, k)
    for _ in range(PASSES):
        before = best
        for model, own in enumerate(probabilities):
            others = weights.copy()
            others[model] = 0
            rest = _weighted(others, probabilities)
            for step in range(0 if others.any() else 1, STEPS + 1):  # Not all weights are 0.
                weight = np.float32(step / STEPS)
                wrong = _wrong(rest + weight * own, labels, k)
                if wrong < best:
                    best, weights[model] = wrong, weight
        if best == before:
            break
    return Tuned(tuple(round(float(weight), 2) for weight in weights), best, equal)


def _weighted(weights: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.tensordot(weights, values, axes=1)
    return result


def _wrong(sums: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> int:
    """Images whose true label is not among the ``k`` best; equal ones rank in label order."""
    true = np.take_along_axis(sums, labels[:, None], axis=1)
    earlier = np.arange(sums.shape[1]) < labels[:, None]
    better = (sums > true) | ((sums == true) & earlier)
    return int(np.count_nonzero(better.sum(axis=1) >= k))
