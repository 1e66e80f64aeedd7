"""Evaluations in the tracking store: their predictions, by model or by stage key.

The predictions are an artifact of the evaluation's run. So they are found from any workdir that
uses the same store.
"""

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from alexnet import predictions
from alexnet.errors import UserError
from alexnet.predictions import Predictions
from pipelines.tracking.run import Run
from pipelines.tracking.store import Store, StoreError, require_server, storing_artifacts

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "predictions.parquet"
MODELS_TAG, VALIDATION_TAG = "models", "validation.content"
_MOST = 100


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The run of an evaluation."""

    run_id: str
    models: str
    """URIs of the averaged models, with spaces between them."""
    validation: str
    """Content digest of the validation shards."""


def tag(run: Run, models: list[str], validation: str) -> None:
    """Record what an evaluation's run evaluates."""
    run.set_tags({MODELS_TAG: " ".join(models), VALIDATION_TAG: validation})


def log_predictions(run: Run, table: "pa.Table") -> None:
    """Log a result of ``alexnet.predictions.merge``."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, FILE)
        pq.write_table(table, path)
        with storing_artifacts(run.store.uri):
            run.store.client.log_artifact(run.run_id, path)


def find(store: Store, *, models: str = "", key: str = "") -> list[Evaluation]:
    """The evaluations of a model (or of several: URIs with spaces between), or with a stage key.

    Returns:
        The one that started last first.
    """
    condition = f"tags.`stage.key` = '{key}'" if key else f"tags.`{MODELS_TAG}` = '{models}'"
    with require_server(store.uri):
        runs = store.client.search_runs(
            [store.experiment_id],
            f"tags.`stage` = 'evaluate' and {condition}",
            max_results=_MOST,
            order_by=["attributes.start_time DESC"],
        )
    return [
        Evaluation(run.info.run_id, tags[MODELS_TAG], tags[VALIDATION_TAG])
        for run in runs
        if (tags := run.data.tags).keys() >= {MODELS_TAG, VALIDATION_TAG}
    ]


def read_predictions(store: Store, run_id: str) -> Predictions | None:
    """The predictions of an evaluation's run; None if it has none, or no longer exists."""
    with tempfile.TemporaryDirectory() as folder, require_server(store.uri):
        try:
            return predictions.read(store.client.download_artifacts(run_id, FILE, folder))
        except (StoreError, OSError, UserError):
            return None
