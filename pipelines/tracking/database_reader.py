"""What the workdir's own MLflow database says, read directly and without writing to it.

Importing MLflow takes seconds, and opening a store may create tables: ``status`` must do neither.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from pipelines.workdir import Workdir


@dataclass(frozen=True, slots=True)
class DatabaseReader:
    """A database of MLflow that is open for reading."""

    _database: sqlite3.Connection

    def has_run(self, run_id: str) -> bool:
        """Whether the run and its experiment exist and are not deleted."""
        return self._has(
            "SELECT 1 FROM runs JOIN experiments USING (experiment_id) WHERE run_uuid = ? "
            "AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'",
            run_id,
        )

    def has_model(self, uri: str) -> bool:
        """Whether a logged model (``models:/m-...``) exists and is not deleted."""
        return self._has(
            "SELECT 1 FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'",
            uri.removeprefix("models:/"),
        )

    def by_alias(self, name: str, alias: str) -> str | None:
        """The number of the version that an alias points to; None if there is no such alias."""
        row = self._database.execute(
            "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?",
            (name, alias),
        ).fetchone()
        return str(row[0]) if row else None

    def _has(self, query: str, value: str) -> bool:
        return self._database.execute(query, (value,)).fetchone() is not None


@contextlib.contextmanager
def read_database(workdir: Workdir) -> Iterator[DatabaseReader | None]:
    """The workdir's own database; None if there is none."""
    if not os.path.isfile(workdir.database):
        yield None
        return
    uri = f"file:{quote(workdir.database)}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as database:
        yield DatabaseReader(database)
