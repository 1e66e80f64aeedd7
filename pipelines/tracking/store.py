"""MLflow: the only module that knows it.

A full run is a parent run with one nested run for each stage; a stage that is run alone is a
run by itself. Without ``--tracking-uri``, runs go to an SQLite file in the workdir and their
artifacts beside it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException

from alexnet import storage
from alexnet.errors import UserError, one_line
from pipelines.console.lock import exclusive_lock
from pipelines.settings import Settings
from pipelines.tracking import server
from pipelines.tracking.server import redacted

if TYPE_CHECKING:
    from torch import nn

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

    def get_or_none(self, ask: Callable[[], T]) -> T | None:
        """What a question to the client gives, None if the store says that there is no such thing.

        Raises:
            UserError: the store does not answer.
        """
        with require_server(self.uri):
            try:
                return ask()
            except MlflowException as error:
                if was_refused(error):
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

    def ui_command(self) -> str:
        """The command, or the address, that shows the runs in a browser."""
        if self.uri.startswith("http"):
            return f"open {redacted(self.uri)}"
        return f"mlflow ui --backend-store-uri {redacted(self.uri)}"


def connect(settings: Settings) -> Store:
    """Open the tracking store and the experiment, making both where they don't exist.

    Raises:
        UserError: the store does not answer.
    """
    server.configure_loggers()
    server.check_reachable(settings.tracking_uri)
    local = settings.tracking_uri is None
    uri = settings.tracking_uri or f"sqlite:///{settings.workdir}/mlflow.db"
    artifacts = storage.join(settings.workdir, "mlartifacts") if local else None
    # The first to come makes the database's tables, which two can't do at once.
    with exclusive_lock(settings.workdir, "tracking"):
        try:
            return Store(uri, _experiment(uri, settings.experiment, artifacts))
        except MlflowException as error:
            raise UserError(
                f"tracking store {redacted(uri)}: {one_line(error)[:300]}; check --tracking-uri"
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


def was_refused(error: MlflowException) -> bool:
    """Whether the store answered that what was asked for can't be had."""
    return not _no_answer(error) and error.get_http_status_code() in (400, 404)


@contextlib.contextmanager
def require_server(uri: str) -> Iterator[None]:
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
        raise server.unavailable_error(uri, one_line(error)[:300]) from error
