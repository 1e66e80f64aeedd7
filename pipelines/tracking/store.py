"""The MLflow store that runs and models go to.

Without ``--tracking-uri``, runs go to an SQLite file in the workdir and their artifacts to a folder
beside it.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from alexnet.errors import UserError
from pipelines.console.lock import exclusive_lock
from pipelines.console.redact import SecretUri, redacted, shortened
from pipelines.settings import Settings
from pipelines.tracking import server
from pipelines.tracking.relocation import relocate_artifacts
from pipelines.workdir import Workdir

if TYPE_CHECKING:
    from torch import nn

MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")
"""The tag of the experiment's kind: model training."""

StoreError = MlflowException
_CONNECTION_ERRORS = (
    MlflowException,
    SQLAlchemyError,
    sqlite3.DatabaseError,
    ImportError,  # The database's driver is missing.
    ValueError,  # No valid URI of a database.
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """An MLflow tracking store, and the experiment in it."""

    address: SecretUri
    experiment_id: str

    @property
    def uri(self) -> str:
        """The store's URI, with its secrets."""
        return self.address.reveal()

    @property
    def client(self) -> MlflowClient:
        """A client of this store."""
        return MlflowClient(self.uri, self.uri)

    def get_or_none(self, request: Callable[[], T]) -> T | None:
        """The answer to a request to the client; None if the store holds no such thing.

        Raises:
            UserError: the store does not answer.
        """
        with require_server(self.uri):
            try:
                return request()
            except MlflowException as error:
                if was_refused(error):
                    return None
                raise

    def load_model(self, uri: str) -> "nn.Module":
        """A logged model."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        return mlflow.pytorch.load_model(uri)  # type: ignore[no-any-return]

    def model_info(self, uri: str) -> Any:
        """MLflow's ``ModelInfo`` of a logged model."""
        return mlflow.models.get_model_info(uri)

    def register_model(self, uri: str, name: str) -> str:
        """Register a logged model as the newest version of a name; returns the version's number."""
        return str(mlflow.register_model(uri, name).version)

    def ui_command(self) -> str:
        """The command, or the address, that shows the runs in a browser."""
        if self.uri.startswith("http"):
            return f"open {self.address}"
        return f"mlflow ui --backend-store-uri {self.address}"


def connect(settings: Settings) -> Store:
    """Open the tracking store and the experiment; create both where they don't exist.

    Raises:
        UserError: the store does not answer.
    """
    server.configure_loggers()
    server.check_reachable(settings.tracking_uri)
    workdir = Workdir(settings.workdir)
    local = settings.tracking_uri is None
    uri = settings.tracking_uri or f"sqlite:///{workdir.database}"
    artifacts = workdir.artifacts if local else None
    # The first process creates the database's tables, which two can't do at the same time.
    with exclusive_lock(workdir, "tracking", "tracking"):
        try:
            if local:
                relocate_artifacts(workdir, MODEL_TRAINING)
            return Store(SecretUri(uri), _experiment(uri, settings.experiment, artifacts))
        except UserError:
            raise
        except _CONNECTION_ERRORS as error:
            remedy = "check --tracking-uri"
            if local:
                remedy = "restore this file or move it away: shards and checkpoints are kept"
            raise UserError(
                f"tracking store {redacted(uri)}: {shortened(error, 300)}; {remedy}"
            ) from error


def _experiment(uri: str, name: str, artifacts: str | None) -> str:
    """The experiment's id; store and experiment are created where they don't exist."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifacts, tags=dict([MODEL_TRAINING])))
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name} is deleted in {redacted(uri)}; restore it or give another "
            "--experiment"
        )
    return str(experiment.experiment_id)


def _no_answer(error: Exception) -> bool:
    """Whether a request has got no answer; the store may have carried it out or not."""
    return (
        not isinstance(error, MlflowException)
        or error.get_http_status_code() == 503
        or str(error).startswith("API request to")
    )


def was_refused(error: MlflowException) -> bool:
    """Whether the store answered that it can't do what was requested."""
    return not _no_answer(error) and error.get_http_status_code() in (400, 404)


@contextlib.contextmanager
def require_server(uri: str) -> Iterator[None]:
    """Wait for the tracking server first; inside, a server that stops answering is an error.

    Raises:
        UserError: it does not answer, now or later.
    """
    server.wait_for(uri)
    try:
        yield
    except (MlflowException, RequestException) as error:
        if not _no_answer(error):
            raise
        raise server.unavailable_error(uri, shortened(error, 300)) from error
