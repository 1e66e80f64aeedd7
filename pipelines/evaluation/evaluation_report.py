"""What predictions say: errors with intervals, in words, as tables and as figures of a run."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from alexnet.metrics import (
    ConfusedPair,
    ErrorCounts,
    calibrate,
    confused_pairs,
    confusion,
    count_errors,
)
from alexnet.plots import evaluation as plots
from alexnet.plots import figures
from alexnet.predictions import Predictions
from alexnet.shards.codec import read_images
from alexnet.shards.format import read_row_group
from alexnet.shards.manifest import Manifest
from alexnet.significance import wilson_interval
from pipelines.results.decorations import Decorations
from pipelines.results.stage_results import EvaluateResult
from pipelines.tracking.run import Run

PANEL_IMAGES = 8
"""Images in the figure of predictions."""

PAIRS = 30
"""Confusions in figure and table."""

SMALL = 10.0
"""Percentage points: if the error's interval is wider, the validation set is called small."""


def summarize(predicted: Predictions, path: str) -> EvaluateResult:
    """The errors of predictions that are stored at ``path``."""
    ten = count_errors(predicted.best, predicted.labels)
    centre = count_errors(predicted.centre_best, predicted.labels)
    calibration = calibrate(predicted.probabilities[:, 0], predicted.correct)
    top1, top1_low, top1_high = _error(ten.top1_wrong, ten)
    centre1, centre1_low, centre1_high = _error(centre.top1_wrong, centre)
    no_error = (None, None, None)
    top5 = _error(ten.top5_wrong, ten) if predicted.has_top5 else no_error
    centre5 = _error(centre.top5_wrong, centre) if predicted.has_top5 else no_error
    return EvaluateResult(
        images=ten.images,
        top1_error=top1,
        top1_error_low=top1_low,
        top1_error_high=top1_high,
        top5_error=top5[0],
        top5_error_low=top5[1],
        top5_error_high=top5[2],
        centre_top1_error=centre1,
        centre_top1_error_low=centre1_low,
        centre_top1_error_high=centre1_high,
        centre_top5_error=centre5[0],
        centre_top5_error_low=centre5[1],
        centre_top5_error_high=centre5[2],
        top1_accuracy=round(100 - ten.top1_error, 3),
        calibration_error=round(100 * calibration.error, 3),
        models=list(predicted.models),
        validation=predicted.validation,
        predictions=path,
    )


def _error(wrong: int, counts: ErrorCounts) -> tuple[float, float, float]:
    """An error and the ends of its interval, per cent."""
    low, high = wilson_interval(wrong, counts.images)
    return (
        round(100 * wrong / counts.images, 3),
        round(100 * low, 3),
        round(100 * high, 3),
    )


def in_words(result: EvaluateResult) -> list[str]:
    """The result as lines for the terminal."""
    low, high = result.top1_error_low, result.top1_error_high
    ten = f"{result.top1_error:.2f} % top-1 error (95 % interval {low:.2f} to {high:.2f} %)"
    centre = f"{result.centre_top1_error:.2f} % top-1 error"
    if result.top5_error is not None:
        ten += (
            f", {result.top5_error:.2f} % top-5 error "
            f"({result.top5_error_low:.2f} to {result.top5_error_high:.2f} %)"
        )
        centre += f", {result.centre_top5_error:.2f} % top-5 error"
    lines = [f"ten views: {ten}", f"centre view: {centre}"]
    if high - low > SMALL:
        lines.append(
            f"{result.images:,} images are a small validation set: the 95 % interval of the top-1 "
            f"error is {high - low:.1f} percentage points wide"
        )
    return lines


def decorations(run: Run, manifest: Manifest, predicted: Predictions) -> Decorations:
    """What is logged about an evaluation: errors per class, confusions, calibration, examples."""
    names = [label.name for label in manifest.labels]
    counts = confusion(predicted.labels, predicted.best[:, 0], len(names))
    pairs = confused_pairs(counts, PAIRS)
    calibration = calibrate(predicted.probabilities[:, 0], predicted.correct)
    logged: dict[str, Callable[[], pa.Table | Figure]] = {
        "classes.json": lambda: class_table(predicted, names, counts),
        "confused_pairs.json": lambda: _pair_table(pairs, names, counts),
        "confusion_matrix.png": lambda: figures.confusion_matrix(counts, names),
        "confused_pairs.png": lambda: plots.confused_pairs(pairs, counts.sum(axis=1), names),
        "reliability.png": lambda: plots.reliability(calibration),
        "predictions.png": lambda: _examples(manifest, predicted, names),
    }

    def log(name: str) -> None:
        made = logged[name]()
        if isinstance(made, pa.Table):
            run.log_table(made, name)
        else:
            run.log_figure(made, name)

    return {
        "the validation images": lambda: run.log_dataset(
            "shards", predicted.validation, manifest.folder, "validation", "val split"
        ),
        **{name: partial(log, name) for name in logged},
    }


def _pair_table(
    pairs: Sequence[ConfusedPair], names: Sequence[str], counts: NDArray[np.int64]
) -> pa.Table:
    return pa.table(
        {
            "true": [names[pair.true] for pair in pairs],
            "predicted": [names[pair.predicted] for pair in pairs],
            "images": [pair.images for pair in pairs],
            "of": [int(counts[pair.true].sum()) for pair in pairs],
        }
    )


def class_table(
    predicted: Predictions, names: Sequence[str], counts: NDArray[np.int64]
) -> pa.Table:
    """One row for each class that has images, the class with the largest error first.

    Args:
        predicted: the predictions.
        names: of the classes.
        counts: their confusion matrix.
    """
    rows = []
    for index, (wnid, name) in enumerate(zip(predicted.wnids, names, strict=True)):
        of_class = predicted.labels == index
        if not of_class.any():
            continue
        errors = count_errors(predicted.best[of_class], predicted.labels[of_class])
        error, low, high = _error(errors.top1_wrong, errors)
        wrong = np.where(np.arange(len(names)) == index, 0, counts[index])
        rows.append(
            {
                "wnid": wnid,
                "name": name,
                "images": errors.images,
                "top1_error": error,
                "low": low,
                "high": high,
                "top5_error": round(errors.top5_error, 3) if predicted.has_top5 else None,
                "most often taken for": names[int(wrong.argmax())] if wrong.any() else "",
            }
        )
    return pa.Table.from_pylist(sorted(rows, key=lambda row: -float(str(row["top1_error"]))))


def _examples(manifest: Manifest, predicted: Predictions, names: Sequence[str]) -> Figure:
    """The first images with their predictions."""
    with ThreadPoolExecutor(2) as decoders:
        rows, images = read_images(manifest.row_groups("val")[0], ["key"], decoders)
    keys = rows["key"].to_pylist()[:PANEL_IMAGES]
    position = {key: index for index, key in enumerate(predicted.keys)}
    shown = [position[key] for key in keys]
    return figures.predictions_panel(
        images[:PANEL_IMAGES],
        [names[predicted.labels[index]] for index in shown],
        [ranking(predicted, names, index) for index in shown],
    )


def ranking(predicted: Predictions, names: Sequence[str], index: int) -> list[tuple[str, float]]:
    """The best classes of one image and their probabilities."""
    best = zip(predicted.best[index], predicted.probabilities[index], strict=True)
    return [(names[label], float(probability)) for label, probability in best]


def images_of(manifest: Manifest, keys: Sequence[str]) -> NDArray[np.uint8]:
    """(len(keys), 256, 256, 3): the stored validation images with these keys, in their order."""
    wanted = set(keys)
    found: dict[str, NDArray[np.uint8]] = {}
    with ThreadPoolExecutor(2) as decoders:
        for group in manifest.row_groups("val"):
            here = read_row_group(group, ["key"])["key"].to_pylist()
            if not wanted.intersection(here):
                continue
            _, images = read_images(group, ["key"], decoders)
            found |= {key: images[i] for i, key in enumerate(here) if key in wanted}
            if len(found) == len(wanted):
                break
    return np.stack([found[key] for key in keys])
