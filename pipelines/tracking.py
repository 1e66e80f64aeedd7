"""MLflow: the only module that knows it.

A full run is a parent run with one nested run for each stage; a stage that is run alone is a
run by itself. Without ``--tracking-uri``, runs go to an SQLite file in the workdir and their
artifacts beside it.
"""

import contextlib
import io
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import UserError
from pipelines.locking import alone
from pipelines.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import nn

PARENT = "mlflow.parentRunId"
DIGEST_LENGTH = 32
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Without this tag, the UI opens the experiment as one about language models."""
CLIENT_WARNINGS = ("mlflow", "alembic", "mlflow.store", "mlflow.models")


@dataclass(frozen=True, slots=True)
class Store:
    """Where runs are kept."""

    uri: str
    experiment_id: str
    local: bool
    """Whether it is the SQLite file in the workdir."""

    @property
    def client(self) -> MlflowClient:
        """A client of this store."""
        return MlflowClient(self.uri, self.uri)

    def how_to_open(self) -> str:
        """The command, or the address, that shows the runs in a browser."""
        if self.local:
            return f"mlflow ui --backend-store-uri {self.uri}"
        return f"open {redacted(self.uri)}"


def connect(settings: Settings) -> Store:
    """Open the tracking store and the experiment, making both where they don't exist.

    Raises:
        UserError: the store does not answer.
    """
    for name in CLIENT_WARNINGS:
        logging.getLogger(name).setLevel(logging.ERROR)
    knock(settings)
    local = settings.tracking_uri is None
    uri = settings.tracking_uri or f"sqlite:///{settings.workdir}/mlflow.db"
    # The first to come makes the database's tables, which two can't do at once.
    with alone(settings.workdir, "tracking"):
        experiment_id = _experiment(settings, uri, local)
    return Store(uri, experiment_id, local)


def _experiment(settings: Settings, uri: str, local: bool) -> str:
    """The experiment's id; store and experiment are made where they don't exist."""
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            artifacts = storage.join(settings.workdir, "mlartifacts") if local else None
            created = client.create_experiment(settings.experiment, artifacts, tags=MODEL_TRAINING)
            return str(created)
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {settings.experiment} is deleted in {redacted(uri)}; restore it or "
                "give another --experiment"
            )
        return str(experiment.experiment_id)
    except MlflowException as error:
        raise UserError(
            f"tracking store {redacted(uri)}: {' '.join(str(error).split())[:300]}; "
            "check --tracking-uri"
        ) from error


def knock(settings: Settings) -> None:
    """Find out within seconds whether a server listens; MLflow itself would try for minutes.

    Raises:
        UserError: nobody listens at ``--tracking-uri``.
    """
    uri = settings.tracking_uri or ""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise UserError(
            f"tracking server {redacted(uri)} does not answer ({error}); start it or correct "
            "--tracking-uri"
        ) from error


def redacted(uri: str) -> str:
    """A URI without its user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def open_run(store: Store, name: str, *, resume: str | None, parent: str | None) -> str:
    """Begin a run, or go on with an unfinished one; returns its id."""
    if resume and run_exists(store, resume):
        return resume
    tags = {"mlflow.runName": name} | ({PARENT: parent} if parent else {})
    return store.client.create_run(store.experiment_id, tags=tags).info.run_id  # type: ignore[no-any-return]


def run_exists(store: Store, run_id: str) -> bool:
    """Whether the store holds a run that is not deleted."""
    try:
        return bool(store.client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


@contextlib.contextmanager
def running(store: Store, run_id: str) -> Iterator["Run"]:
    """A run in progress: it ends as finished, as failed, or as killed by the keyboard."""
    mlflow.set_system_metrics_sampling_interval(5)
    mlflow.set_system_metrics_samples_before_logging(1)
    mlflow.start_run(run_id=run_id, log_system_metrics=True)
    status = RunStatus.FAILED
    try:
        yield Run(store, run_id)
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        mlflow.end_run(RunStatus.to_string(status))


def close_run(store: Store, run_id: str, error: BaseException | None) -> None:
    """End a run that ``running`` does not manage."""
    status = RunStatus.FINISHED if error is None else RunStatus.FAILED
    if isinstance(error, KeyboardInterrupt):
        status = RunStatus.KILLED
    store.client.set_terminated(run_id, RunStatus.to_string(status))


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


@dataclass(slots=True)
class MetricWriter:
    """Metrics from a training worker: written in the background, never fatal, never twice."""

    client: MlflowClient
    run_id: str
    written: int
    """Steps up to this one are in the store already, from before a restart."""
    pending: list[Any]
    lost: int = 0

    @classmethod
    def attach(cls, uri: str, run_id: str, metric: str) -> "MetricWriter":
        """Go on writing to a run; ``metric`` is one that every point of the curves has."""
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri, uri)
        try:
            written = max((m.step for m in client.get_metric_history(run_id, metric)), default=-1)
        except MlflowException:
            written = -1
        return cls(client, run_id, written, [])

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Queue one point of several curves."""
        if step <= self.written:
            return
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        try:
            self.pending.append(self.client.log_batch(self.run_id, metrics, synchronous=False))
        except MlflowException:
            self.lost += len(metrics)

    def flush(self) -> int:
        """Wait until everything is written; returns how many points could not be."""
        for operation in self.pending:
            try:
                operation.wait()
            except Exception:
                self.lost += 1
        self.pending.clear()
        return self.lost


def load_classifier(store: Store, uri: str) -> "nn.Module":
    """A logged or registered model as a function from patches to probabilities, on the CPU.

    Raises:
        UserError: there is no such model, or it is not one of ours.
    """
    mlflow.set_tracking_uri(store.uri)
    mlflow.set_registry_uri(store.uri)
    try:
        return mlflow.pytorch.load_model(uri)  # type: ignore[no-any-return]
    except (MlflowException, OSError, ValueError) as error:
        raise _no_model(uri, error) from error


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the tracking store knows about a logged model."""

    uri: str
    """``models:/m-...``, which never changes its meaning, unlike an alias."""
    run_id: str
    classes: tuple[tuple[str, str], ...]
    """wnid and name by class index."""


def model_facts(store: Store, uri: str) -> ModelFacts:
    """Resolve a model's URI and read which classes it knows.

    Raises:
        UserError: there is no such model, or it was not trained here.
    """
    try:
        info = mlflow.models.get_model_info(uri)
        classes = info.metadata["classes"]
    except (MlflowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _no_model(uri, error) from error
    named = tuple((wnid, name) for wnid, name in classes)
    return ModelFacts(f"models:/{info.model_id}", info.run_id, named)


def _requirement(name: str) -> str:
    """The installed version of a package, without a build's suffix that no index knows."""
    return f"{name}=={version(name).partition('+')[0]}"


def model_exists(store: Store, uri: str) -> bool:
    """Whether a logged model (``models:/m-...``) is still in the store."""
    try:
        return bool(store.client.get_logged_model(uri.removeprefix("models:/")))
    except MlflowException:
        return False


def _no_model(uri: str, error: Exception) -> UserError:
    reason = storage.one_line(error)[:200]
    return UserError(
        f"{uri}: no AlexNet model can be loaded from there ({reason}); "
        "train and promote one first, or give another --model"
    )


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version of the model."""

    version: str
    tags: Mapping[str, str]


def register(store: Store, name: str, model_uri: str, tags: Mapping[str, str]) -> str:
    """Register a logged model, or find it registered; returns the version's number."""
    known = store.client.search_model_versions(f"name = '{name}'")
    same = [version for version in known if version.source == model_uri]
    registered = same[0] if same else mlflow.register_model(model_uri, name)
    for key, value in tags.items():
        store.client.set_model_version_tag(name, registered.version, key, value)
    return str(registered.version)


def by_alias(store: Store, name: str, alias: str) -> Version | None:
    """The version that an alias points at."""
    try:
        found = store.client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None
    return Version(str(found.version), dict(found.tags))


def set_alias(store: Store, name: str, alias: str, version: str) -> None:
    """Point an alias at a version."""
    store.client.set_registered_model_alias(name, alias, version)
