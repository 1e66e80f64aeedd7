"""The MLflow store that runs and models go to.

Without ``--tracking-uri``, runs go to an SQLite file in the workdir and their artifacts to a folder
beside it.
"""

import contextlib
import functools
import io
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from alexnet.errors import UnwritableFolderError, UserError
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.redact import SecretUri, redacted, shortened
from pipelines.settings import Settings
from pipelines.tracking import server
from pipelines.tracking.database import prepare_database
from pipelines.tracking.descriptions import DESCRIPTION, NOTE
from pipelines.tracking.environment import restored_variables
from pipelines.tracking.location import StoreLocation, locate_store
from pipelines.tracking.relocation import relocate_artifacts
from pipelines.workdir import Workdir

if TYPE_CHECKING:
    from torch import nn

MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")
"""The tag of the experiment's kind: model training."""
RUNS_PAGE = "#/experiments/{}/runs?workflowType=machine_learning"
"""MLflow opens experiments as applications of language models unless the address says otherwise."""
LOCAL_ADDRESS = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves by default."""

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
        _select(self.uri)
        if "%25" not in self.uri:
            return mlflow.pytorch.load_model(uri)  # type: ignore[no-any-return]
        # MLflow decodes the path of a model once more than it should, so one with a percent sign
        # is copied first.
        with tempfile.TemporaryDirectory() as folder:
            local = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
            return mlflow.pytorch.load_model(local)  # type: ignore[no-any-return]

    def download_model(self, uri: str, folder: str) -> Path:
        """A copy of the files of a logged model, without MLflow's own, in a folder."""
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=uri, dst_path=folder, tracking_uri=self.uri, registry_uri=self.uri
        )
        return Path(path, "data")

    def model_info(self, uri: str) -> Any:
        """MLflow's ``ModelInfo`` of a logged model."""
        return mlflow.models.get_model_info(uri)

    def register_model(self, uri: str, name: str) -> str:
        """Register a logged model as the newest version of a name; returns the version's number."""
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow tells of it in its own words.
            return str(mlflow.register_model(uri, name).version)

    @property
    def has_server(self) -> bool:
        """Whether it is a server, which also has the UI."""
        return self.uri.startswith("http")

    def ui_command(self) -> str:
        """The command, or the address, that shows the runs in a browser."""
        address = shlex.quote(str(self.address))
        if self.has_server:
            return f"open {address}"
        return f"mlflow ui --backend-store-uri {address}"

    def runs_address(self, server: str = LOCAL_ADDRESS) -> str:
        """The address of the page with the runs, as model training.

        Args:
            server: that shows the store's runs, if the store is no server itself.
        """
        base = str(self.address) if self.has_server else server
        return f"{base.rstrip('/')}/{RUNS_PAGE.format(self.experiment_id)}"


def connect(settings: Settings) -> Store:
    """Open the tracking store and the experiment; create both where they don't exist.

    Raises:
        UserError: the store does not answer.
    """
    server.configure_loggers()
    server.check_reachable(settings.tracking_uri)
    workdir, given = Workdir(settings.workdir), settings.tracking_uri
    try:
        location = locate_store(settings)
        _log_choice(location.uri, settings)
        # Also other workdirs' commands may create or use the same file now.
        shared = Workdir(os.path.dirname(location.database)) if location.database else workdir
        with exclusive_lock(shared, "tracking", "tracking"):
            if given is None:
                relocate_artifacts(workdir, MODEL_TRAINING)
            if location.is_database:
                prepare_database(location)
            experiment = _experiment(location, settings.experiment)
        return Store(SecretUri(location.uri), experiment)
    except UserError as error:
        if given is None or not isinstance(error, UnwritableFolderError):
            raise
        raise UserError(
            f"tracking store {redacted(given)}: {error}; check --tracking-uri"
        ) from error
    except _CONNECTION_ERRORS as error:
        name, remedy = given, "check --tracking-uri"
        if name is None:
            name = workdir.database
            remedy = "restore this file or move it away: shards and checkpoints are kept"
        raise UserError(
            f"tracking store {redacted(name)}: {shortened(error, 300)}; {remedy}"
        ) from error


@functools.cache
def _log_once(line: str) -> None:
    stage_logger("tracking").info("%s", line)


def _log_choice(uri: str, settings: Settings) -> None:
    """Log a store or experiment that is not the default, and what has named it."""
    chosen = {
        "store": ("tracking_uri", redacted(uri)),
        "experiment": ("experiment", settings.experiment),
    }
    words = [
        f"{word} {value} ({settings.origins.get(name, 'given')})"
        for word, (name, value) in chosen.items()
        if name in settings.given and getattr(settings, name) is not None
    ]
    if words:
        _log_once(", ".join(words))


def _select(uri: str) -> None:
    """Let MLflow's functions use a store.

    MLflow also sets its variables, in which another command would see the user's choice.
    """
    with restored_variables():
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)


def _experiment(location: StoreLocation, name: str) -> str:
    """The experiment's id; store and experiment are created where they don't exist."""
    uri = location.uri
    _select(uri)
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        with contextlib.suppress(MlflowException):  # Another command has just created it.
            tags = dict([MODEL_TRAINING, (NOTE, DESCRIPTION)])
            return str(client.create_experiment(name, location.artifacts, tags=tags))
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"experiment {name} is deleted in {redacted(uri)}; restore it or give another "
            "--experiment"
        )
    if experiment.tags.get(MODEL_TRAINING[0]) == MODEL_TRAINING[1] and NOTE not in experiment.tags:
        with contextlib.suppress(MlflowException):  # Made by an earlier version.
            client.set_experiment_tag(experiment.experiment_id, NOTE, DESCRIPTION)
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


@contextlib.contextmanager
def storing_artifacts(uri: str) -> Iterator[None]:
    """Inside, an artifact is stored without which a stage has no result.

    Raises:
        UserError: its place is not writable, full, or refuses it.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, RequestException) and error.response is None:
            raise  # No answer: whoever waits for the server reports it.
        raise UserError(
            f"{redacted(uri)}: its artifacts can't be stored ({shortened(error, 300)}); check the "
            "permissions and the free space of the place for artifacts, then give the same command "
            "again: finished work is kept"
        ) from error
