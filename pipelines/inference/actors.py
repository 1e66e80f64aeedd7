"""The Ray Data actor of ``evaluate``."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import features, predictions, tuning
from alexnet.metrics import average
from alexnet.model.classifier import average_models
from alexnet.model.exported import Layer
from alexnet.model.precision import Precision
from alexnet.shards.codec import read_images
from alexnet.shards.format import RowGroup
from alexnet.training.augment import CENTRE_VIEW
from pipelines.clusters.task_errors import errors_as_rows
from pipelines.inference.predictor import Predictor
from pipelines.tracking.store import Store


class Evaluator:
    """The actor of ``evaluate``: one row group of the validation split → one row per image."""

    def __init__(
        self,
        store: Store,
        models: Mapping[str, Precision],
        threads: int,
        coefficients: Sequence[float] | None = None,
        layer: Layer | None = None,
        *,
        by_model: bool = False,
    ) -> None:
        """Prepare.

        Args:
            store: that holds the models.
            models: the precision of each, by URI.
            threads: to compute with.
            coefficients: the models' weights in the average; the same for all by default.
            layer: whose features are wanted, of the only model.
            by_model: whether the probabilities of each model are wanted.
        """
        self.models, self.coefficients, self.layer = models, coefficients, layer
        self.by_model = by_model
        # The models are loaded in the first call, which can return errors.
        self.predictor = cache(partial(Predictor.load, store, list(models), threads))
        self.decoders = ThreadPoolExecutor(threads)

    @errors_as_rows(predictions.SCHEMA.append(features.FIELD).append(tuning.BY_MODEL))
    def __call__(self, items: Mapping[str, NDArray[Any]]) -> pa.Table:
        """Predict a row group.

        Args:
            items: ``path``, ``number`` and ``rows`` of one ``RowGroup``, each an array of one.

        Returns:
            ``alexnet.predictions.SCHEMA``, ``alexnet.features.FIELD``, null without a layer, and
            ``alexnet.tuning.BY_MODEL``, null unless wanted.
        """
        group = RowGroup(str(items["path"][0]), int(items["number"][0]), int(items["rows"][0]))
        rows, images = read_images(group, ["key", "label"], self.decoders)
        by_model = self.predictor().by_model(images, self.models)
        by_view = average_models(by_model, self.coefficients).numpy()
        ten_views, centre_view = average(list(by_view)), by_view[CENTRE_VIEW]
        units: list[NDArray[np.float32] | None] = [None] * len(rows)
        if self.layer:
            units = list(self.predictor().features(images, self.layer, self.models))
        each: list[NDArray[np.float32] | None] = [None] * len(rows)
        if self.by_model:
            ten_and_centre = [
                np.stack([average(list(views)), views[CENTRE_VIEW]])
                for views in by_model.cpu().numpy()
            ]
            # (models, 2, N, classes) → one row of each image
            each = list(np.stack(ten_and_centre).transpose(2, 0, 1, 3).reshape(len(rows), -1))
        table = predictions.rank(rows["key"], rows["label"], ten_views, centre_view)
        table = table.append_column(features.FIELD, pa.array(units, features.FIELD.type))
        return table.append_column(tuning.BY_MODEL, pa.array(each, tuning.BY_MODEL.type))
