"""Where a tracking store and its artifacts are.

A database without a server has its artifacts beside it, or in the workdir; MLflow itself would put
them into the folder in which the command happens to run.
"""

import os
from dataclasses import dataclass

from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import URL, make_url

from pipelines.settings import Settings
from pipelines.workdir import Workdir


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLocation:
    """A tracking store, which need not exist yet."""

    uri: str
    artifacts: str | None
    """Of new experiments; None if the server decides."""
    database: str | None = None
    """The path of an SQLite file."""
    is_database: bool
    """Whether the store is a database that this process opens itself."""


def locate_store(settings: Settings) -> StoreLocation:
    """The store that the settings name, by default the workdir's own.

    Raises:
        sqlalchemy.exc.ArgumentError: the URI of a database can't be read.
    """
    workdir, uri = Workdir(settings.workdir), settings.tracking_uri
    in_workdir = artifact_location(workdir.artifacts)
    if uri is None:
        return StoreLocation(
            uri=sqlite_uri(URL.create("sqlite", database=workdir.database)),
            artifacts=in_workdir,
            database=workdir.database,
            is_database=True,
        )
    dialect = uri.partition(":")[0].partition("+")[0]
    if dialect not in DATABASE_ENGINES:
        return StoreLocation(uri=uri, artifacts=None, is_database=False)
    url = make_url(uri)
    if dialect != "sqlite" or not url.database or url.database.startswith((":", "file:")):
        return StoreLocation(uri=uri, artifacts=in_workdir, is_database=True)
    # Absolute, because Ray's workers run elsewhere.
    path = os.path.abspath(url.database)
    return StoreLocation(
        uri=sqlite_uri(url.set(database=path)),
        artifacts=artifact_location(f"{os.path.splitext(path)[0]}-artifacts"),
        database=path,
        is_database=True,
    )


def sqlite_uri(url: URL) -> str:
    """The URI of an SQLite file, whatever characters its path has."""
    assert url.database
    text = url.render_as_string(hide_password=False)
    # With the plain scheme, MLflow creates the folder that the escapes in a URI spell.
    return (
        text if url.database in text else url.set(drivername="sqlite+pysqlite").render_as_string()
    )


def artifact_location(folder: str) -> str:
    """A folder, or the URI of one, as MLflow's location of artifacts, whose escapes it decodes."""
    return folder if "://" in folder else folder.replace("%", "%25")
