"""One MLflow run: its parameters, metrics, tags, figures, data sets and model.

A full run is a parent run with one nested run for each stage; a stage that is run alone is a run
by itself.
"""

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from numpy.typing import NDArray
from requests import RequestException

from pipelines.console.log import current_log_file
from pipelines.console.output import printable
from pipelines.console.redact import redacted
from pipelines.tracking import server
from pipelines.tracking.descriptions import NOTE
from pipelines.tracking.metric_writer import Point, StoreUnavailableError
from pipelines.tracking.node_metrics import set_sampling
from pipelines.tracking.store import Store, require_server, storing_artifacts, was_refused

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import nn

PARENT = "mlflow.parentRunId"
TABLES = "mlflow.loggedArtifacts"
DIGEST_LENGTH = 32


def open_run(
    store: Store, stage: str, *, resume: str | None, parent: str | None, name: str | None = None
) -> str:
    """Create a run, or resume an unfinished one; returns its id.

    Args:
        store: where it goes.
        stage: or command, whose run it is.
        resume: the id of the unfinished run.
        parent: the id of the run that it is part of.
        name: that people see; by default the stage.
    """
    if resume and run_exists(store, resume):
        return resume
    tags = {"mlflow.runName": redacted(name or stage), "stage": stage} | (
        {PARENT: parent} if parent else {}
    )
    with require_server(store.uri):
        run = store.client.create_run(store.experiment_id, tags=tags)
    return str(run.info.run_id)


def run_status(store: Store, run_id: str) -> str | None:
    """The run's status; None if the store does not hold it or it is deleted."""
    run = store.get_or_none(lambda: store.client.get_run(run_id))
    return str(run.info.status) if run and run.info.lifecycle_stage == "active" else None


def run_exists(store: Store, run_id: str) -> bool:
    """Whether the store holds the run and it is not deleted."""
    return run_status(store, run_id) is not None


def run_params(store: Store, run_id: str) -> dict[str, str]:
    """The parameters of a run; none if the store does not hold it."""
    run = store.get_or_none(lambda: store.client.get_run(run_id))
    return dict(run.data.params) if run else {}


def code_span(text: str) -> str:
    """Text as code in Markdown: nothing in it is markup, also no backtick, line break or tag."""
    line = printable(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    # The spaces are no part of the code.
    return f"{fence} {line} {fence}" if longest else f"{fence}{line}{fence}"


@contextlib.contextmanager
def active_run(store: Store, run_id: str) -> Iterator["Run"]:
    """A run whose status becomes finished, failed, or killed (by the keyboard) at the end.

    Raises:
        UserError: the server did not answer for longer than it is waited for.
    """
    set_sampling()

    def end(status: str) -> None:
        mlflow.end_run(status)  # Without effect if it has not become the active run yet.
        store.client.set_terminated(run_id, status)

    with require_server(store.uri):
        try:
            mlflow.start_run(run_id=run_id, log_system_metrics=True)
            yield Run(store, run_id)
            server.wait_for(store.uri)
            mlflow.end_run("FINISHED")
        except BaseException as error:
            _mark_failed(store, error, end)
            raise
        finally:
            log_output(store, run_id)


def log_output(store: Store, run_id: str) -> None:
    """Log the command's log file so far as an artifact, if the server answers."""
    path = current_log_file()
    if path and not server.connection_error(store.uri):
        with contextlib.suppress(MlflowException, RequestException, OSError):
            store.client.log_artifact(run_id, path, "logs")


def close_run(store: Store, run_id: str, error: BaseException | None) -> None:
    """Set the final status of a run that ``active_run`` does not manage."""
    end = functools.partial(store.client.set_terminated, run_id)
    if error:
        _mark_failed(store, error, end)
        return
    with require_server(store.uri):
        end("FINISHED")


def _mark_failed(store: Store, error: BaseException, end: Callable[[str], None]) -> None:
    """Set a run's status to failed, if the server answers; the error itself matters more."""
    if server.connection_error(store.uri):
        server.set_short_timeouts()
    with contextlib.suppress(MlflowException):
        end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


@dataclass(frozen=True, slots=True)
class MetricStore:
    """The metrics of a run over its steps: a ``metric_writer.MetricSink``."""

    uri: str
    run_id: str

    def last_step(self, metric: str) -> int:
        """The highest step of a metric, -1 if it has none."""
        with self._request() as client:
            points = client.get_metric_history(self.run_id, metric)
            return max((point.step for point in points), default=-1)

    def write(self, points: Sequence[Point]) -> None:
        """Write all points in one request and one transaction."""
        metrics = [
            Metric(name, value, point.time, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        with self._request() as client:
            client.log_batch(self.run_id, metrics)

    @contextlib.contextmanager
    def _request(self) -> Iterator[MlflowClient]:
        try:
            yield MlflowClient(self.uri, self.uri)
        except MlflowException as error:
            if was_refused(error):
                raise
            raise StoreUnavailableError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage can log about itself while it runs."""

    store: Store
    run_id: str

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; those that a resumed run has already stay as they are."""
        present = self.store.client.get_run(self.run_id).data.params
        new = {k: redacted(str(v)) for k, v in values.items() if k not in present}
        mlflow.log_params(new, run_id=self.run_id)

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step."""
        mlflow.log_metrics(dict(values), step=step, run_id=self.run_id)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags, without secrets."""
        for name, value in values.items():
            self.store.client.set_tag(self.run_id, name, redacted(value))

    def set_description(self, markdown: str) -> None:
        """Set the description at the top of the run's page."""
        self.set_tags({NOTE: markdown})

    def log_figure(self, figure: "Figure", path: str) -> None:
        """Log a figure as an image file."""
        self.store.client.log_figure(self.run_id, figure, path)

    def log_table(self, table: "pa.Table", path: str) -> None:
        """Log a table, which the UI shows as a table; unlike MLflow's method, never append to one.

        A stage that was killed and is resumed logs its tables again.
        """
        rows = [list(row.values()) for row in table.to_pylist()]
        self.log_json({"columns": table.column_names, "data": rows}, path)
        tables = json.loads(self.store.client.get_run(self.run_id).data.tags.get(TABLES, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in tables:
            self.set_tags({TABLES: json.dumps([*tables, entry])})

    def log_json(self, value: Any, path: str) -> None:
        """Log a dictionary as a JSON file."""
        self.store.client.log_dict(self.run_id, value, path)

    def log_dataset(self, name: str, digest: str, uri: str, context: str, profile: str) -> None:
        """Log a data set as an input of the run."""
        source = json.dumps({"uri": redacted(uri)}, ensure_ascii=False)
        dataset = Dataset(redacted(name), digest[:DIGEST_LENGTH], "local", source, profile=profile)
        tags = [InputTag("mlflow.data.context", context)]
        self.store.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def log_model(
        self, classifier: "nn.Module", example: NDArray[np.uint8], metadata: Mapping[str, Any]
    ) -> str:
        """Export and log a crop classifier; returns its ``models:/m-...`` URI.

        A model that this run logged before it was interrupted is deleted.

        ``metadata`` is stored with the model; its ``classes`` lists wnid and name by class index.
        """
        from pipelines.tracking import saved_model  # It imports torch, which takes seconds.

        with contextlib.redirect_stdout(io.StringIO()), storing_artifacts(self.store.uri):
            info = Model.log(
                None,
                saved_model,
                name="model",
                metadata=dict(metadata),
                flavor_name="pytorch",
                classifier=classifier,
                example=example,
                classes=len(metadata["classes"]),
            )
        client = self.store.client
        for model in client.search_logged_models(
            [self.store.experiment_id], f"source_run_id = '{self.run_id}'"
        ):
            if model.model_id != info.model_id:
                client.delete_logged_model(model.model_id)
        return f"models:/{info.model_id}"
