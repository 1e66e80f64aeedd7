"""Predictions of several models → those of their average with tuned weights."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from alexnet import predictions
from alexnet.metrics import has_top5
from alexnet.model.classifier import average_models
from alexnet.tuning import BY_MODEL, Tuned, tune_coefficients


def with_tuned_average(
    parts: Sequence[pa.Table], models: int, classes: int
) -> tuple[pa.Table, Tuned]:
    """A table of ``alexnet.predictions.SCHEMA``, and the weights with which it was made.

    Args:
        parts: tables of that schema with the column ``by_model``.
        models: number of models.
        classes: number of classes.
    """
    by_model = np.concatenate([_probabilities(part, models, classes) for part in parts], axis=2)
    images = pa.concat_tables([part.select(["key", "label"]) for part in parts])
    tuned = tune_coefficients(by_model[:, 0], images["label"].to_numpy().astype(np.int64))
    averaged = average_models(torch.from_numpy(by_model), tuned.coefficients).numpy()
    return predictions.rank(images["key"], images["label"], *averaged), tuned


def in_words(tuned: Tuned, images: int, classes: int) -> str:
    """One line that says what the weights are worth."""
    k = "5" if has_top5(classes) else "1"
    now, equal = (
        f"{100 * wrong / images:.2f} %" for wrong in (tuned.wrong, tuned.wrong_with_equal)
    )
    weights = ", ".join(f"{weight:g}" for weight in tuned.coefficients)
    return (
        f"tuned coefficients {weights}: top-{k} error {now}, {equal} with equal ones; they were "
        "chosen on these images, on others the error will be a little higher"
    )


def _probabilities(part: pa.Table, models: int, classes: int) -> NDArray[np.float32]:
    """(models, 2, N, classes): of ten views and of the centre view."""
    values = part[BY_MODEL.name].combine_chunks().flatten().to_numpy()
    by_image: NDArray[np.float32] = values.reshape(len(part), models, 2, classes)
    return by_image.transpose(1, 2, 0, 3)
