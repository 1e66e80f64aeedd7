"""What the tracking store holds that takes space or keeps something needed, and how it is deleted.

Only the workdir's own store is listed completely: other workdirs may use the runs of a server.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from alexnet import storage
from pipelines.tracking.store import Store, require_server

FREED_TAG = "artifacts.deleted"
"""Of a run whose artifacts were deleted because nothing needed them: the date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run of a stage."""

    run_id: str
    stage: str
    key: str
    """Stage key; empty if the run does not say."""
    artifacts: str
    """Folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A logged model."""

    uri: str
    run_id: str
    artifacts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A registered version."""

    name: str
    """``<registered name>/<version>``."""
    source: str
    """URI of the logged model."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def stage_runs(store: Store) -> Iterator[StoredRun]:
    """The runs of the experiment's stages that are not deleted."""
    for run in _pages(
        lambda token: store.client.search_runs(
            [store.experiment_id], "tags.`stage` != ''", page_token=token
        ),
        store,
    ):
        yield StoredRun(
            run_id=str(run.info.run_id),
            stage=run.data.tags["stage"],
            key=run.data.tags.get("stage.key", ""),
            artifacts=_folder(run.info.artifact_uri),
        )


def models(store: Store) -> Iterator[StoredModel]:
    """The experiment's logged models that are not deleted."""
    for model in _pages(
        lambda token: store.client.search_logged_models([store.experiment_id], page_token=token),
        store,
    ):
        yield StoredModel(
            uri=f"models:/{model.model_id}",
            run_id=str(model.source_run_id or ""),
            artifacts=_folder(model.artifact_location),
        )


def versions(store: Store) -> Iterator[StoredVersion]:
    """All registered versions, of any name."""
    aliases = {
        (model.name, str(version)): alias
        for model in _pages(
            lambda token: store.client.search_registered_models(page_token=token), store
        )
        for alias, version in dict(model.aliases).items()
    }
    for version in _pages(
        lambda token: store.client.search_model_versions(page_token=token), store
    ):
        name, number = version.name, str(version.version)
        yield StoredVersion(
            name=f"{name}/{number}",
            source=str(version.source),
            aliases=tuple(sorted(a for key, a in aliases.items() if key == (name, number))),
            tags=dict(version.tags),
        )


def delete_run_artifacts(store: Store, run: StoredRun, date: str) -> None:
    """Delete a run's artifacts; its parameters, metrics and tags stay."""
    store.client.set_tag(run.run_id, FREED_TAG, date)
    storage.delete_folder(run.artifacts)


def delete_model(store: Store, model: StoredModel) -> None:
    """Delete a logged model, then its files."""
    store.client.delete_logged_model(model.uri.removeprefix("models:/"))
    storage.delete_folder(model.artifacts)


def _pages(request: Callable[[str | None], Any], store: Store) -> Iterator[Any]:
    token = None
    while True:
        with require_server(store.uri):
            page = request(token)
        yield from page
        token = page.token
        if not token:
            return


def _folder(location: str) -> str:
    """A local folder that MLflow names by a path or a URI, whose escapes it decodes."""
    path = urlsplit(location).path if location.startswith("file:") else location
    return path if storage.is_remote(path) else os.path.abspath(unquote(path))
