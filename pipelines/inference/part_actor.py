"""The Ray Data actor of ``batch_inference``; it writes parts of the output."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexnet.inference.parts import PartOptions, PartWriter
from alexnet.model.exported import Layer
from alexnet.model.precision import Precision
from pipelines.clusters.task_errors import pack_writing_errors
from pipelines.inference.predictor import BatchPredictor, Predictor
from pipelines.tracking.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The models and how they predict."""

    store: Store
    uris: tuple[str, ...]
    views: int
    layer: Layer | None
    precision: Precision
    batch_size: int


class PartActor:
    """Writes one part for each row; its threads share the models."""

    def __init__(self, options: PartOptions, models: ModelOptions, threads: int) -> None:
        def load() -> BatchPredictor:
            # Each thread decodes and predicts batches of its own, so that none waits for another.
            loaded = Predictor.load(models.store, models.uris, threads=1)
            # The objects of the modules and models live as long as the process. Searching them for
            # garbage takes seconds.
            gc.freeze()
            return BatchPredictor(
                loaded,
                len(options.rows.names),
                views=models.views,
                layer=models.layer,
                precision=models.precision,
            )

        # The models are loaded in the first call, which can return errors.
        self._writer = PartWriter(options, load, models.batch_size, threads)
        self._output = options.output

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Write one part, unless an actor that was lost has written it.

        Args:
            row: ``number`` of the part.

        Returns:
            ``number`` and ``error``: a packed ``UserError`` or ``OSError``; empty if there is none.
        """
        number = int(row["number"])
        packed = pack_writing_errors(lambda: self._writer.write(number), self._output, "parts")
        return {"number": row["number"], "error": packed}
