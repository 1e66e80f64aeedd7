"""Metrics and parameters of logged models: the Models page ranks and shows models by them.

Metrics of a run are not shown there.
"""

import time
from collections.abc import Mapping

from mlflow.entities import Metric

from pipelines.console.redact import redacted
from pipelines.tracking.run import DIGEST_LENGTH, Run


def log_model_metrics(
    run: Run, model: str, values: Mapping[str, float], dataset: str, digest: str
) -> None:
    """Log metrics of a logged model on a data set.

    Args:
        run: in which they were computed.
        model: its URI, ``models:/m-...``.
        values: by name.
        dataset: name of the data set.
        digest: of the data set.
    """
    now = int(1000 * time.time())
    metrics = [
        Metric(
            name,
            value,
            now,
            0,
            model_id=model.removeprefix("models:/"),
            dataset_name=dataset,
            dataset_digest=digest[:DIGEST_LENGTH],
            run_id=run.run_id,
        )
        for name, value in values.items()
    ]
    run.store.client.log_batch(run.run_id, metrics)


def log_model_params(run: Run, model: str, values: Mapping[str, object]) -> None:
    """Log parameters of a logged model, apart from those that it has already.

    MLflow copies the parameters of the run to a model that is logged in it, and refuses a second
    value.

    Args:
        run: that has trained it.
        model: its URI, ``models:/m-...``.
        values: by name.
    """
    client, model_id = run.store.client, model.removeprefix("models:/")
    known = client.get_logged_model(model_id).params
    params = {n: redacted(str(value)) for n, value in values.items() if n not in known}
    if params:
        client.log_model_params(model_id, params)
