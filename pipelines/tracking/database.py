"""The database of a tracking store that this process opens itself.

MLflow creates its tables in dozens of steps. Two processes that do so at once destroy each other's
work, and one that is killed leaves tables that no version can use. So an SQLite file is created
under another name.
"""

import os
import shlex
import uuid
from pathlib import Path

import mlflow.store.db_migrations
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from alexnet.errors import UserError
from pipelines.console.redact import redacted
from pipelines.tracking.location import StoreLocation, sqlite_uri


def prepare_database(location: StoreLocation) -> None:
    """Create an SQLite file that does not exist or is empty; check the tables of any other store.

    The caller holds the store's lock.

    Raises:
        UserError: another version of MLflow has created the tables.
        sqlalchemy.exc.SQLAlchemyError: the database can't be opened.
    """
    path = location.database
    if path and not (os.path.exists(path) and os.path.getsize(path)):
        assert location.artifacts
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        url = sqlalchemy.URL.create("sqlite", database=temporary)
        SqlAlchemyStore(sqlite_uri(url), location.artifacts).engine.dispose()
        os.replace(temporary, path)
        return
    engine = sqlalchemy.create_engine(location.uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    _check_version(location.uri, found)


def _check_version(uri: str, found: str | None) -> None:
    """Compare the version of the tables with MLflow's.

    Args:
        uri: of the store.
        found: the version, None if there are no tables yet.
    """
    versions = ScriptDirectory(str(Path(mlflow.store.db_migrations.__file__).parent))
    if found is None or found in versions.get_heads():
        return
    try:
        versions.get_revision(found)
    except CommandError as error:
        raise UserError(
            f"tracking store {redacted(uri)}: created by a newer MLflow than the installed "
            f"{mlflow.__version__}; install the newer one, or give another --tracking-uri"
        ) from error
    command = f"mlflow db upgrade {shlex.quote(redacted(uri))}"
    raise UserError(
        f"tracking store {redacted(uri)}: created by an older MLflow than the installed "
        f"{mlflow.__version__}; make a copy of the database, then run `{command}`"
    )
