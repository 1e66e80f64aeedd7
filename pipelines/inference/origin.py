"""What an output was begun with, stored in it; only a command with the same may complete it.

    <output>/_listing/origin.json   inputs, settings that decide the result, models, code
    <output>/_listing/run.json      the MLflow run of the command that works on it

So an output of other inputs, settings or models is never mixed or overwritten, and a folder without
an origin that contains anything at all is left alone.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from alexnet import storage
from alexnet.errors import UnwritableFolderError, UserError, one_line
from alexnet.inference.inputs import glob_root
from alexnet.inference.listing import is_listed, listing_folder
from alexnet.inference.output import MANIFEST, THUMBNAILS
from alexnet.inference.page import PAGE, PAGES
from alexnet.sources.ignored import ignoring_rule
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.configuration.setting_types import option_text

_OWN_FILE = re.compile(
    rf"part-\d{{6,}}\.(parquet|csv|jsonl)|{re.escape(MANIFEST)}|{re.escape(PAGE)}"
)
_TEMPORARY = re.compile(r".+\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """A model that predicted."""

    uri: str
    """``models:/m-...``."""
    version: str | None
    """``<registered name>/<version>``, if it was named so or by an alias."""
    digest: str
    """sha256 of its files."""
    shards: str | None
    """Content digest of the shards that it was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What decides an output, apart from the content of its inputs."""

    images: list[str]
    settings: dict[str, Any]
    """Values by the setting's name."""
    models: list[ModelOrigin]
    code: str
    """Version of the code that decides what is predicted."""


def check_output(settings: BatchInferenceSettings) -> None:
    """Check that an output is not inside an input, and contains nothing else.

    Raises:
        UserError: it is or it does.
    """
    output = settings.output
    for path in settings.images:
        root = glob_root(path) or path
        if _is_inside(output, root):
            raise UserError(
                f"{output}: is inside {root}, which is searched for images; "
                "give an --output outside"
            )
    if storage.is_file(output):
        raise UserError(f"{output}: is a file; give a folder as --output")
    if storage.is_folder(output) and not storage.is_file(_origin_path(output)):
        found = next((name for name in _names(output) if not ignoring_rule([name])), None)
        if found:
            raise UserError(
                f"{output}: contains {found}, which is not from an earlier run; give another "
                "--output"
            )


def begin(output: str, origin: Origin, *, force: bool) -> Origin:
    """Store the origin of a new output, or check that of one that was begun.

    Without a listing, as after a wrong input, an output has not been begun.

    Args:
        output: the folder, which ``check_output`` has checked.
        origin: what decides the output now.
        force: delete what earlier runs have written.

    Returns:
        The origin as it is stored.

    Raises:
        UserError: the output was begun with something else.
    """
    path = _origin_path(output)
    if force:
        _delete(output)
    if not storage.is_file(path) or not is_listed(output):
        try:
            storage.make_folder(output)
        except UnwritableFolderError as error:
            raise UserError(f"{one_line(error)}; choose another --output") from error
        storage.write_json(path, asdict(origin))
        return origin
    stored = _read_origin(path)
    if difference := _difference(stored, origin):
        raise UserError(
            f"{output}: was begun with {difference}; give the same, another --output, or --force "
            "to begin anew"
        )
    _delete_temporary_files(output)
    return stored


def unfinished_run(output: str) -> str | None:
    """The id of the MLflow run of a command that has not finished the output."""
    try:
        value = storage.read_json(_run_path(output))
        return None if storage.is_file(storage.join(output, MANIFEST)) else str(value["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def set_run(output: str, run_id: str) -> None:
    """Store the id of the MLflow run that works on the output."""
    storage.write_json(_run_path(output), {"run_id": run_id})


def _difference(stored: Origin, now: Origin) -> str:
    """How two origins differ, in words; empty if they do not."""
    if stored.images != now.images:
        return f"--images {' '.join(stored.images)}, not {' '.join(now.images)}"
    for name, value in now.settings.items():
        if stored.settings.get(name) != value:
            before = option_text(stored.settings.get(name))
            return f"--{name.replace('_', '-')} {before}, not {option_text(value)}"
    if _identities(stored) != _identities(now):
        return f"--model {_models_text(stored)}, not {_models_text(now)}"
    return "another version of the code" if stored.code != now.code else ""


def _identities(origin: Origin) -> list[tuple[str, str]]:
    return [(model.uri, model.digest) for model in origin.models]


def _models_text(origin: Origin) -> str:
    return " ".join(
        f"{model.uri} ({f'version {model.version}, ' * bool(model.version)}sha256 "
        f"{model.digest[:12]})"
        for model in origin.models
    )


def _read_origin(path: str) -> Origin:
    try:
        value: dict[str, Any] = storage.read_json(path)
        models = [ModelOrigin(**model) for model in value.pop("models")]
        return Origin(**value, models=models)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: can't be read ({one_line(error)}); give another --output"
        ) from error


def _is_inside(path: str, root: str) -> bool:
    if storage.is_remote(path) or storage.is_remote(root):
        return f"{path}/".startswith(f"{root}/")
    real = os.path.realpath(root)
    inside = f"{os.path.realpath(path)}/".startswith(f"{real.rstrip('/')}/")
    return inside and os.path.isdir(real)


def _origin_path(output: str) -> str:
    return storage.join(listing_folder(output), "origin.json")


def _run_path(output: str) -> str:
    return storage.join(listing_folder(output), "run.json")


def _names(output: str) -> Iterator[str]:
    """Names of files and folders directly in a folder."""
    files = storage.list_files(output, recursive=False)
    yield from (file.path[len(output) :].lstrip("/") for file in files)
    yield from storage.list_folders(output)


def _delete(output: str) -> None:
    """Delete what commands have written to an output, its origin last."""
    for name in list(_names(output)):
        if _OWN_FILE.fullmatch(name) or _TEMPORARY.fullmatch(name):
            storage.delete_file(storage.join(output, name))
    for folder in (THUMBNAILS, PAGES):
        storage.delete_folder(storage.join(output, folder))
    storage.delete_folder(listing_folder(output))


def _delete_temporary_files(output: str) -> None:
    """Delete what processes that were killed have left; the output is locked."""
    for folder in (output, listing_folder(output), storage.join(output, THUMBNAILS)):
        for file in storage.list_files(folder, recursive=False):
            if _TEMPORARY.fullmatch(file.path.rpartition("/")[2]):
                storage.delete_file(file.path)


def as_metadata(origin: Origin) -> Mapping[str, str]:
    """What the metadata of each Parquet file says about its origin."""
    settings = {f"alexnet.{name}": option_text(value) for name, value in origin.settings.items()}
    models: dict[str, str] = {}
    for field in ("uri", "version", "digest", "shards"):
        values = [getattr(model, field) or "" for model in origin.models]
        models[f"alexnet.model.{field}"] = " ".join(values)
    return models | settings | {"alexnet.code": origin.code}
