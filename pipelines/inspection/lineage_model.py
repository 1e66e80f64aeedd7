"""The links of a lineage that MLflow holds: registered version, model, run of its training."""

from collections.abc import Iterator

from alexnet.errors import UserError, one_line
from pipelines.inspection.lineage_subject import Subject
from pipelines.results.command_results import Link
from pipelines.tracking import contents, registry
from pipelines.tracking.run import run_exists
from pipelines.tracking.store import Store


def version_links(store: Store, uri: str, recorded: tuple[str, ...]) -> Iterator[Link]:
    """The registered versions of a model, and those by which a file names it."""
    versions = {v.name: v for v in contents.versions(store) if v.source == uri}
    for name, version in versions.items():
        aliases = ", ".join(version.aliases)
        detail = f"aliases {aliases}" if aliases else "no alias"
        yield Link(kind="version", name=name, detail=detail)
    for name in recorded:
        if name not in versions:
            yield Link(
                kind="version",
                name=name,
                problem="no longer exists in the registry; pipelines/promote.py --force registers "
                f"{uri} again, under another number",
            )
    if not versions and not recorded:
        yield Link(kind="version", name="none", detail=f"{uri} is not registered")


def model_links(store: Store, uri: str, subject: Subject, number: int) -> Iterator[Link]:
    """The model and the run that trained it."""
    if not registry.model_exists(store, uri):
        yield Link(
            kind="model",
            name=uri,
            problem="was deleted in MLflow; pipelines/train.py trains it again, with the same "
            "settings and data set",
        )
        return
    try:
        info = registry.get_model_info(store, uri)
        digest = registry.model_digest(store, uri)
    except UserError as error:
        yield Link(kind="model", name=uri, problem=one_line(error))
        return
    recorded = subject.digests[number] if number < len(subject.digests) else digest
    changed = recorded != digest
    yield Link(
        kind="model",
        name=uri,
        detail=f"{len(info.classes)} classes, sha256 {digest}",
        problem=f"its files have the sha256 {digest}, not {recorded} as at the prediction; "
        "restore them from a backup"
        if changed
        else "",
    )
    deleted = not run_exists(store, info.run_id)
    yield Link(
        kind="run",
        name=info.run_id,
        detail="of the training",
        problem=f"was deleted in MLflow; `mlflow runs restore --run-id {info.run_id}` restores it"
        if deleted
        else "",
    )


def shards_of(store: Store, uri: str) -> str | None:
    """Content digest of the data set that a model was trained on, if it still says so."""
    if not registry.model_exists(store, uri):
        return None
    try:
        return registry.get_model_info(store, uri).shards
    except UserError:
        return None
