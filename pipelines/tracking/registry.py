"""Models in the tracking store: loading, metadata, registration and aliases."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from alexnet import storage
from alexnet.errors import UserError
from pipelines.configuration.setting_types import Precision
from pipelines.console.redact import redacted, shortened
from pipelines.tracking.store import Store, StoreError, was_refused

if TYPE_CHECKING:
    from torch import nn

PREVIOUS_TAG = "champion.previous"
"""Of a version that became champion: the champion before it."""
ROLLED_BACK_TAG = "champion.rolled_back"
"""Of a version that is no longer champion because somebody took it back: the reason."""
MAX_DESCRIPTION = 5000
RULE = "\n\n---\n\n"
"""Above and below the model card in a version's description."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the tracking store holds about a logged model."""

    uri: str
    """``models:/m-...``: always the same model, unlike an alias."""
    run_id: str
    classes: tuple[tuple[str, str], ...]
    """wnid and name by class index."""
    shards: str | None = None
    """Content digest of the shards that it was trained on, if it says so."""
    version: str | None = None
    """``<name>/<version>`` of a registered model."""
    precision: Precision = "float32"
    """In which it was trained and validated; older models do not say it."""


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version of the model."""

    version: str
    tags: Mapping[str, str]
    source: str = ""
    """URI of the logged model."""


def load_classifier(store: Store, uri: str) -> "nn.Module":
    """A logged or registered model as a function from crops to probabilities, on the CPU.

    Raises:
        UserError: there is no such model, or it is not one of this project.
    """
    try:
        return store.load_model(uri)
    except (StoreError, OSError, ValueError) as error:
        raise _no_model(uri, error) from error


def get_model_info(store: Store, uri: str) -> ModelInfo:
    """Resolve a model's URI and read its classes.

    Raises:
        UserError: there is no such model, or it is not one of this project.
    """
    try:
        info = store.model_info(uri)
        metadata = info.metadata or {}
        named = tuple((str(wnid), str(name)) for wnid, name in metadata.get("classes") or ())
        version = _registered_version(store, uri)
        precision = _precision(metadata.get("precision", "float32"))
    except (StoreError, OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_model(uri, error) from error
    if not named:
        raise UserError(
            f'{uri}: has no class names ("classes" in its metadata), so it is not a model of this '
            "project; give another --model"
        )
    return ModelInfo(
        f"models:/{info.model_id}",
        info.run_id,
        named,
        metadata.get("shards"),
        version,
        precision,
    )


def _precision(text: str) -> Precision:
    if text not in get_args(Precision):
        raise ValueError(f"its precision is {text}")
    return cast(Precision, text)


def _registered_version(store: Store, uri: str) -> str | None:
    """``<name>/<version>``, if the URI names a registered model by version or alias."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not at:
        return name if "/" in name else None
    version = by_alias(store, name, alias)
    return f"{name}/{version.version}" if version else None


def model_digest(store: Store, uri: str) -> str:
    """sha256 over names and contents of a logged model's files: its graph and its weights.

    Raises:
        UserError: they can't be read.
    """
    digest = hashlib.sha256()
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = store.download_model(uri, folder)
            paths = sorted(file for file in data.rglob("*") if file.is_file())
            if not paths:
                raise FileNotFoundError("its files are missing")
            for path in paths:
                digest.update(f"{path.relative_to(data)}\0".encode())
                digest.update(bytes.fromhex(storage.sha256(str(path))))
    except (StoreError, OSError, ValueError) as error:
        raise _no_model(uri, error) from error
    return digest.hexdigest()


def _no_model(uri: str, error: Exception) -> UserError:
    reason = shortened(error, 200)
    return UserError(
        f"{uri}: no AlexNet model can be loaded from there ({reason}); "
        "train and promote one first, or give another --model"
    )


def model_exists(store: Store, uri: str) -> bool:
    """Whether a logged model (``models:/m-...``) is still in the store."""
    name = uri.removeprefix("models:/")
    return store.get_or_none(lambda: store.client.get_logged_model(name)) is not None


def register(store: Store, name: str, model_uri: str, tags: Mapping[str, str]) -> Version:
    """Register a logged model unless it is registered, and tag its version."""
    with _refusals(name):
        known = store.client.search_model_versions(f"name = '{name}'")
        same = [version.version for version in known if version.source == model_uri]
        number = str(same[0]) if same else store.register_model(model_uri, name)
        set_tags(store, name, number, tags)
        return get_version(store, name, number)


def get_version(store: Store, name: str, number: str) -> Version:
    """A registered version.

    Raises:
        UserError: it does not exist, or no longer.
    """
    version = store.get_or_none(lambda: store.client.get_model_version(name, number))
    if version is None:
        raise UserError(
            f"version {number} of {name} does not exist or was deleted; give another one, or set "
            "the alias in MLflow"
        )
    return Version(str(version.version), dict(version.tags), version.source)


def by_alias(store: Store, name: str, alias: str) -> Version | None:
    """The version that an alias points to, None if the alias does not exist."""
    version = store.get_or_none(lambda: store.client.get_model_version_by_alias(name, alias))
    return Version(str(version.version), dict(version.tags), version.source) if version else None


def set_alias(store: Store, name: str, alias: str, version: str) -> None:
    """Point an alias to a version, and remember the version."""
    with _refusals(name):
        store.client.set_registered_model_alias(name, alias, version)
        store.client.set_registered_model_tag(name, f"{alias}.version", version)


def last_set(store: Store, name: str, alias: str) -> str | None:
    """The version that ``set_alias`` set last. The alias has another if somebody else moved it."""
    model = store.get_or_none(lambda: store.client.get_registered_model(name))
    return model.tags.get(f"{alias}.version") if model else None


def set_tags(store: Store, name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    with _refusals(name):
        for key, value in tags.items():
            store.client.set_model_version_tag(name, version, key, redacted(value))


def describe(store: Store, name: str, version: str, markdown: str) -> None:
    """Put a text at the top of a version's description; an earlier one remains below the card."""
    with _refusals(name):
        before = store.client.get_model_version(name, version).description or ""
        if not before.startswith(markdown):
            head, card, history = _parts(before)
            earlier = "\n\n".join(filter(None, [head, history]))
            _set_description(store, name, version, [markdown, card, earlier])


def set_card(store: Store, name: str, version: str, card: str) -> None:
    """Set the model card in a version's description, below the newest text."""
    with _refusals(name):
        before = store.client.get_model_version(name, version).description or ""
        head, _, history = _parts(before)
        _set_description(store, name, version, [head, card, history])


def _parts(description: str) -> tuple[str, str, str]:
    """The newest text, the card and the earlier texts."""
    head, _, rest = description.partition(RULE)
    card, _, history = rest.partition(RULE)
    return head, card, history


def _set_description(store: Store, name: str, version: str, parts: list[str]) -> None:
    head, card, history = parts
    text = RULE.join(parts) if card else "\n\n".join(filter(None, [head, history]))
    store.client.update_model_version(name, version, redacted(text)[:MAX_DESCRIPTION])


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Inside, a version or a name that somebody has deleted meanwhile is a ``UserError``."""
    try:
        yield
    except StoreError as error:
        if not was_refused(error):
            raise
        raise UserError(
            f"registered model {name}: {shortened(error, 200)}; if somebody has deleted it, run "
            "the command again"
        ) from error
