"""MLflow: the only module that knows it.

A full run is a parent run with one nested run for each stage; a stage that is run alone is a
run by itself. Without ``--tracking-uri``, runs go to an SQLite file in the workdir and their
artifacts beside it.
"""

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from requests import RequestException

from alexnet import storage
from alexnet.errors import UserError
from pipelines import server
from pipelines.curves import NoAnswerError, Point
from pipelines.locking import alone
from pipelines.server import redacted
from pipelines.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import nn

PARENT = "mlflow.parentRunId"
DIGEST_LENGTH = 32
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without this tag, the UI opens the experiment as one about language models."""
StoreError = MlflowException
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """Where runs are kept."""

    uri: str
    experiment_id: str

    @property
    def client(self) -> MlflowClient:
        """A client of this store."""
        return MlflowClient(self.uri, self.uri)

    def find(self, ask: Callable[[], T]) -> T | None:
        """What a question to the client gives, None if the store says that there is no such thing.

        Raises:
            UserError: the store does not answer.
        """
        with answered(self.uri):
            try:
                return ask()
            except MlflowException as error:
                if _refused(error):
                    return None
                raise

    def load_model(self, uri: str) -> "nn.Module":
        """A model as it was logged."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return mlflow.pytorch.load_model(uri)  # type: ignore[no-any-return]

    def model_info(self, uri: str) -> Any:
        """What was recorded of a logged model."""
        return mlflow.models.get_model_info(uri)

    def register_model(self, uri: str, name: str) -> str:
        """Make a logged model the newest version of a registered one; returns its number."""
        return str(mlflow.register_model(uri, name).version)

    def how_to_open(self) -> str:
        """The command, or the address, that shows the runs in a browser."""
        if self.uri.startswith("http"):
            return f"open {redacted(self.uri)}"
        return f"mlflow ui --backend-store-uri {redacted(self.uri)}"


def connect(settings: Settings) -> Store:
    """Open the tracking store and the experiment, making both where they don't exist.

    Raises:
        UserError: the store does not answer.
    """
    server.quieten()
    server.knock(settings.tracking_uri)
    local = settings.tracking_uri is None
    uri = settings.tracking_uri or f"sqlite:///{settings.workdir}/mlflow.db"
    artifacts = storage.join(settings.workdir, "mlartifacts") if local else None
    # The first to come makes the database's tables, which two can't do at once.
    with alone(settings.workdir, "tracking"):
        try:
            return Store(uri, _experiment(uri, settings.experiment, artifacts))
        except MlflowException as error:
            raise UserError(
                f"tracking store {redacted(uri)}: {storage.one_line(error)[:300]}; "
                "check --tracking-uri"
            ) from error


def _experiment(uri: str, name: str, artifacts: str | None) -> str:
    """The experiment's id; store and experiment are made where they don't exist."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifacts, tags=MODEL_TRAINING))
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name} is deleted in {redacted(uri)}; restore it or give another "
            "--experiment"
        )
    return str(experiment.experiment_id)


def _no_answer(error: Exception) -> bool:
    """Whether a request did not get through, whatever came of it."""
    return (
        not isinstance(error, MlflowException)
        or error.get_http_status_code() == 503
        or str(error).startswith("API request to")
    )


def _refused(error: MlflowException) -> bool:
    """Whether the store answered that what was asked for can't be had."""
    return not _no_answer(error) and error.get_http_status_code() in (400, 404)


@contextlib.contextmanager
def answered(uri: str) -> Iterator[None]:
    """What is done inside needs the tracking server; it is waited for at the beginning.

    Raises:
        UserError: it does not answer, now or later.
    """
    server.wait_for(uri)
    try:
        yield
    except (MlflowException, RequestException) as error:
        if not _no_answer(error):
            raise
        raise server.gone(uri, storage.one_line(error)[:300]) from error


def open_run(store: Store, name: str, *, resume: str | None, parent: str | None) -> str:
    """Begin a run, or go on with an unfinished one; returns its id."""
    if resume and run_exists(store, resume):
        return resume
    tags = {"mlflow.runName": name} | ({PARENT: parent} if parent else {})
    with answered(store.uri):
        run = store.client.create_run(store.experiment_id, tags=tags)
    return str(run.info.run_id)


def run_exists(store: Store, run_id: str) -> bool:
    """Whether the store holds a run that is not deleted."""
    run = store.find(lambda: store.client.get_run(run_id))
    return run is not None and run.info.lifecycle_stage == "active"


@contextlib.contextmanager
def running(store: Store, run_id: str) -> Iterator["Run"]:
    """A run in progress: it ends as finished, as failed, or as killed by the keyboard.

    Raises:
        UserError: the server went away for longer than one waits.
    """
    mlflow.set_system_metrics_sampling_interval(5)
    mlflow.set_system_metrics_samples_before_logging(1)
    with answered(store.uri):
        mlflow.start_run(run_id=run_id, log_system_metrics=True)
        try:
            yield Run(store, run_id)
            server.wait_for(store.uri)
            mlflow.end_run("FINISHED")
        except BaseException as error:
            _end_badly(store, error, mlflow.end_run)
            raise


def close_run(store: Store, run_id: str, error: BaseException | None) -> None:
    """End a run that ``running`` does not manage."""
    end = functools.partial(store.client.set_terminated, run_id)
    if error:
        _end_badly(store, error, end)
        return
    with answered(store.uri):
        end("FINISHED")


def _end_badly(store: Store, error: BaseException, end: Callable[[str], None]) -> None:
    """Say that a run broke off, if the server hears it; the error is what matters now."""
    if server.silence(store.uri):
        server.give_up_soon()
    with contextlib.suppress(MlflowException):
        end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")


@dataclass(frozen=True, slots=True)
class Curves:
    """A run's curves in the store: a ``curves.CurveStore``."""

    uri: str
    run_id: str

    def last_step(self, curve: str) -> int:
        """The highest step of a curve."""
        with self._asked() as client:
            points = client.get_metric_history(self.run_id, curve)
            return max((point.step for point in points), default=-1)

    def write(self, points: Sequence[Point]) -> None:
        """One request, one transaction."""
        metrics = [
            Metric(name, value, point.time, point.step)
            for point in points
            for name, value in point.values.items()
        ]
        with self._asked() as client:
            client.log_batch(self.run_id, metrics)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[MlflowClient]:
        try:
            yield MlflowClient(self.uri, self.uri)
        except MlflowException as error:
            if _refused(error):
                raise
            raise NoAnswerError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Run:
    """What a stage can say about itself while it runs."""

    store: Store
    run_id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters under flat names; a resumed run has them already and they stay."""
        present = self.store.client.get_run(self.run_id).data.params
        new = {k: redacted(str(v)) for k, v in values.items() if k not in present}
        mlflow.log_params(new, run_id=self.run_id)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics at a step."""
        mlflow.log_metrics(dict(values), step=step, run_id=self.run_id)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags."""
        for name, value in values.items():
            self.store.client.set_tag(self.run_id, name, value)

    def note(self, markdown: str) -> None:
        """The description that the run's page opens with."""
        self.tags({"mlflow.note.content": markdown})

    def figure(self, figure: "Figure", path: str) -> None:
        """A figure as an image file among the artifacts."""
        self.store.client.log_figure(self.run_id, figure, path)

    def table(self, table: "pa.Table", path: str) -> None:
        """A table, which the UI shows as one."""
        self.store.client.log_table(self.run_id, table.to_pydict(), path)

    def json(self, value: Any, path: str) -> None:
        """A dictionary as a JSON file."""
        self.store.client.log_dict(self.run_id, value, path)

    def data(self, name: str, digest: str, place: str, context: str, profile: str) -> None:
        """A data set as an input of the run."""
        source = '{"uri": "' + redacted(place).replace('"', "%22") + '"}'
        dataset = Dataset(name, digest[:DIGEST_LENGTH], "local", source, profile=profile)
        tags = [InputTag("mlflow.data.context", context)]
        self.store.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def model(
        self, classifier: "nn.Module", example: NDArray[np.uint8], facts: Mapping[str, Any]
    ) -> str:
        """Export and log a patch classifier; returns its ``models:/m-...`` URI.

        ``facts`` stay with the model wherever it goes; ``classes`` among them lists wnid and
        name by class index.
        """
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]), "patches")]),
            outputs=Schema(
                [TensorSpec(np.dtype(np.float32), (-1, len(facts["classes"])), "probabilities")]
            ),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            info = mlflow.pytorch.log_model(
                classifier,
                name="model",
                input_example=example,
                signature=signature,
                metadata=dict(facts),
                # MLflow would find these out by loading the model once more in a new process.
                pip_requirements=[_requirement(name) for name in ("mlflow", "numpy", "torch")],
            )
        return f"models:/{info.model_id}"


def _requirement(name: str) -> str:
    """The installed version of a package, without a build's suffix that no index knows."""
    return f"{name}=={version(name).partition('+')[0]}"
