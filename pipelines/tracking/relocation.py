"""A workdir's own store, after the workdir was moved or copied.

MLflow stores the absolute path of every run's, model's and experiment's artifacts. In the store of
a workdir, these are below the workdir; the paths that name another place are rewritten, so that
artifacts are read from and written to the present workdir only.
"""

import contextlib
import json
import os
import sqlite3
from urllib.parse import unquote

from pipelines.console.log import stage_logger
from pipelines.tracking.location import artifact_location
from pipelines.workdir import Workdir

PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
"""Tables and columns that hold paths of artifacts."""

ROOTS = """
    SELECT DISTINCT artifact_location FROM experiments NATURAL JOIN experiment_tags
    WHERE key = ? AND value = ?
"""


def relocate_artifacts(workdir: Workdir, tag: tuple[str, str]) -> None:
    """Let the store's paths name the present place of the workdir; in one transaction.

    Args:
        workdir: that may hold a store.
        tag: that an experiment has if its artifacts are in the workdir.
    """
    if not os.path.isfile(workdir.database):
        return
    with contextlib.closing(sqlite3.connect(workdir.database, timeout=60)) as database, database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
        if not {("experiments",), ("experiment_tags",)} <= set(tables):
            return
        new = artifact_location(workdir.artifacts)
        for (old,) in database.execute(ROOTS, tag).fetchall():
            if old and _is_elsewhere(old, new):
                _rewrite(database, {table for (table,) in tables}, old, new)
                stage_logger("tracking").info(
                    "the workdir was moved or copied: artifacts are in %s, no longer in %s",
                    workdir.artifacts,
                    old,
                )


def _is_elsewhere(old: str, new: str) -> bool:
    """Whether a path is that of the workdir's artifacts at another place."""
    if not os.path.isabs(old) or os.path.basename(old) != os.path.basename(new):
        return False
    return not (old == new or (os.path.exists(old) and os.path.samefile(old, new)))


def _rewrite(database: sqlite3.Connection, tables: set[str], old: str, new: str) -> None:
    prefix = old + "/"
    for table, column in PATHS:
        if table in tables:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(prefix), prefix),
            )
    folders = (os.path.dirname(unquote(path)) + "/" for path in (old, new))
    old_uri, new_uri = (json.dumps({"uri": folder}, ensure_ascii=False)[:-2] for folder in folders)
    if "datasets" in tables:
        database.execute(
            "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)",
            (old_uri, new_uri),
        )
