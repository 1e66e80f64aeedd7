"""The Ray Data actor of ``evaluate``."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import predictions
from alexnet.metrics import average, top_labels
from alexnet.model.precision import Precision
from alexnet.shards.codec import read_images
from alexnet.shards.format import RowGroup
from alexnet.training.augment import CENTRE_VIEW
from pipelines.clusters.task_errors import errors_as_rows
from pipelines.inference.predictor import Predictor
from pipelines.tracking.store import Store


class Evaluator:
    """The actor of ``evaluate``: one row group of the validation split → one row per image."""

    def __init__(self, store: Store, models: Mapping[str, Precision], threads: int) -> None:
        """``models``: the precision of each, by URI."""
        self.models = models
        # The models are loaded in the first call, which can return errors.
        self.predictor = cache(partial(Predictor.load, store, list(models), threads))
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
        by_view = self.predictor().views(images, self.models)
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
