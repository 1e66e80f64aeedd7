"""The Ray Data tasks and actors of ``evaluate`` and ``batch_inference``."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import predictions, storage
from alexnet.errors import one_line
from alexnet.metrics import average, top_labels
from alexnet.recipes import IMAGE_SIZE
from alexnet.shards.codec import read_images
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.format import RowGroup
from alexnet.training.augment import CENTRE_VIEW
from pipelines.inference.predictor import Predictor
from pipelines.task_errors import errors_as_rows, raise_errors
from pipelines.tracking.registry import ModelInfo
from pipelines.tracking.store import Store

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
"""One row for each file. ``status`` is ``ok`` or ``rejected``; the lists are best first."""

DECODED_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("pixels", pa.binary())]
)
"""One row for each file: 196,608 bytes of pixels, null if the file is rejected for a reason."""


class Evaluator:
    """The actor of ``evaluate``: one row group of the validation split → one row per image."""

    def __init__(self, store: Store, uris: list[str], threads: int) -> None:
        # The models are loaded in the first call, which can return errors.
        self.predictor = cache(partial(Predictor.load, store, uris, threads))
        self.decoders = ThreadPoolExecutor(threads)

    @errors_as_rows(predictions.SCHEMA)
    def __call__(self, items: Mapping[str, NDArray[Any]]) -> pa.Table:
        """Predict a row group.

        Args:
            items: ``path``, ``number`` and ``rows`` of one ``RowGroup``, each an array of one.

        Returns:
            ``alexnet.predictions.SCHEMA``.
        """
        group = RowGroup(str(items["path"][0]), int(items["number"][0]), int(items["rows"][0]))
        rows, images = read_images(group, ["key", "label"], self.decoders)
        by_view = self.predictor().views(images)
        ten_views, centre_view = average(list(by_view)), by_view[CENTRE_VIEW]
        best = top_labels(ten_views)
        return pa.table(
            {
                "key": rows["key"],
                "label": rows["label"],
                "labels": list(best),
                "probabilities": list(np.take_along_axis(ten_views, best, axis=1)),
                "centre_labels": list(top_labels(centre_view)),
            }
        )


@errors_as_rows(DECODED_SCHEMA)
def read_and_decode(files: pa.Table, *, upright: bool = True) -> pa.Table:
    """The task of ``batch_inference``: read and decode files.

    Args:
        files: ``path`` and ``size``.
        upright: whether images are turned as their EXIF orientation says.

    Returns:
        ``DECODED_SCHEMA``.
    """
    pixels: list[bytes | None] = []
    reasons: list[str | None] = []
    for path, size in zip(files["path"].to_pylist(), files["size"].to_pylist(), strict=True):
        try:
            decoded = decode(storage.read_range(path, 0, size), upright=upright)
        except (OSError, EOFError) as error:
            pixels.append(None)
            reasons.append(f"unreadable: {one_line(error)}")
            continue
        if isinstance(decoded, Decoded):
            pixels.append(decoded.pixels.tobytes())
            reasons.append(None)
        else:
            pixels.append(None)
            reasons.append(f"{decoded.reason}: {decoded.detail}")
    return pa.table([files["path"], reasons, pixels], schema=DECODED_SCHEMA)


class _Prediction(NamedTuple):
    """The best labels of one image, best first."""

    labels: NDArray[np.int64]
    names: NDArray[np.object_]
    probabilities: NDArray[np.float32]


class BatchPredictor:
    """The actor of ``batch_inference``: decoded images → predictions."""

    def __init__(
        self, store: Store, model: ModelInfo, top_k: int, views: int, threads: int
    ) -> None:
        self.predictor = cache(partial(Predictor.load, store, [model.uri], threads))
        self.names = np.array([name for _, name in model.classes], dtype=object)
        self.top_k, self.views = top_k, views

    @errors_as_rows(PREDICTIONS_SCHEMA)
    def __call__(self, rows: pa.Table) -> pa.Table:
        """``DECODED_SCHEMA`` → ``PREDICTIONS_SCHEMA``."""
        rows = raise_errors(rows)
        readable = rows["pixels"].is_valid().to_numpy()
        images = [
            np.frombuffer(pixels.as_buffer(), np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE, 3)
            for pixels in rows["pixels"]
            if pixels.is_valid
        ]
        predicted = iter(self._predict(np.stack(images)) if images else [])
        predictions = [next(predicted) if ok else ([], [], []) for ok in readable]
        return pa.table(
            {
                "path": rows["path"],
                "status": ["ok" if ok else "rejected" for ok in readable],
                "reason": rows["reason"],
                "labels": [labels for labels, _, _ in predictions],
                "names": [names for _, names, _ in predictions],
                "probabilities": [probabilities for _, _, probabilities in predictions],
            },
            schema=PREDICTIONS_SCHEMA,
        )

    def _predict(self, images: NDArray[np.uint8]) -> list[_Prediction]:
        """(N, 256, 256, 3) → N predictions."""
        probabilities = average(list(self.predictor().views(images, self.views)))
        best = top_labels(probabilities, self.top_k)
        best_probabilities = np.take_along_axis(probabilities, best, axis=1)
        return [
            _Prediction(*row)
            for row in zip(best, self.names[best], best_probabilities, strict=True)
        ]
