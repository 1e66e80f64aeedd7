"""Rows of predictions, their counts, and thumbnails."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image as PillowImage

from alexnet.inference.output import BINS, PartResult
from alexnet.inference.reading import Image
from alexnet.metrics import top_labels
from alexnet.shards.decode import Decoded, Rejection, render_reject

THUMBNAIL_SIZE = 160
"""Pixels of a thumbnail's side."""


class Prediction(NamedTuple):
    """What models say about N images."""

    probabilities: NDArray[np.float32]
    """(N, classes)."""
    features: NDArray[np.float32] | None = None
    """(N, units), if they are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """What of a prediction becomes a row."""

    names: tuple[str, ...]
    """Of the classes, by index."""
    top_k: int
    min_probability: float
    """Labels with a lower probability are left out."""
    view: str
    """The value of the column."""


def rows_of(
    paths: Sequence[str], images: Sequence[Image], predicted: Prediction | None, options: RowOptions
) -> list[dict[str, Any]]:
    """One row for each image.

    Args:
        paths: of the images.
        images: decoded or rejected.
        predicted: for those that are decoded; None if none are.
        options: what becomes a row.
    """
    predictions = _predictions(predicted, options) if predicted else iter(())
    rows = []
    for path, image in zip(paths, images, strict=True):
        row = {"path": path, "sha256": image.sha256, "view": options.view}
        if isinstance(image.decoded, Decoded):
            size = {"width": image.decoded.width, "height": image.decoded.height}
            rows.append(row | size | {"status": "ok"} | next(predictions))
        else:
            reason = f"{image.decoded.reason}: {image.decoded.detail}"
            empty: dict[str, Any] = {"labels": [], "names": [], "probabilities": []}
            rows.append(row | empty | {"status": "rejected", "reason": reason})
    return rows


def _predictions(predicted: Prediction, options: RowOptions) -> Iterator[dict[str, Any]]:
    best = top_labels(predicted.probabilities, options.top_k)
    best_probabilities = np.take_along_axis(predicted.probabilities, best, axis=1)
    for index, (labels, probabilities) in enumerate(zip(best, best_probabilities, strict=True)):
        enough = probabilities >= options.min_probability
        row: dict[str, Any] = {
            "labels": labels[enough],
            "names": [options.names[label] for label in labels[enough]],
            "probabilities": probabilities[enough],
        }
        if predicted.features is not None:
            row["features"] = predicted.features[index]
        yield row


def summary(table: pa.Table, number: int, listing: str) -> PartResult:
    """Counts of a part's predictions, without its files.

    Args:
        table: of ``output.SCHEMA``.
        number: of the part.
        listing: digest of its part of the listing.
    """
    reasons = Counter(
        reason.partition(":")[0] for reason in table["reason"].drop_null().to_pylist()
    )
    some = pc.greater(pc.list_value_length(table["labels"]), 0)
    labelled = table.select(["labels", "probabilities"]).filter(some)
    labels = Counter(pc.list_element(labelled["labels"], 0).to_pylist())
    confidences = np.histogram(
        pc.list_element(labelled["probabilities"], 0).to_numpy(), BINS, (0.0, 1.0)
    )[0]
    return PartResult(
        number=number,
        listing=listing,
        rows=len(table),
        rejected=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        labels={str(label): count for label, count in sorted(labels.items())},
        confidences=confidences.tolist(),
        files={},
    )


def thumbnail(decoded: Decoded | Rejection) -> bytes:
    """An image as a small JPEG; grey if it is rejected."""
    pixels = decoded.pixels if isinstance(decoded, Decoded) else render_reject(b"")
    buffer = BytesIO()
    side = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    image = PillowImage.fromarray(pixels).resize(side, PillowImage.Resampling.BOX)
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
