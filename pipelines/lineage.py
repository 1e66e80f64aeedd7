"""From a prediction or a model back to the original bytes: each link, or what is missing.

prediction → registered version → model → run → data set → source → image and its sha256. The image
is the first of the file, or the one that --key names. With --check, the image's prediction is done
again from the source's bytes and compared with the recorded one. Exit status 1 if a link is broken.

    alexnet lineage models:/alexnet@champion --workdir /data/work
    alexnet lineage /data/predictions/part-000000.parquet --check --workdir /data/work
"""

import hashlib
import re
from collections.abc import Iterator
from typing import NoReturn

import pyarrow.compute as pc

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.inference.items import WHOLE, ListedItem
from alexnet.inference.listing import read_items
from alexnet.shards.find import FoundRow, find_row
from alexnet.shards.manifest import Manifest
from alexnet.sources.read import read_image, read_source
from pipelines.configuration.command_settings import LineageSettings
from pipelines.console.cli import CheckFailedError, run_script, show
from pipelines.console.table import table
from pipelines.inspection.lineage_check import check_evaluated, check_part
from pipelines.inspection.lineage_model import model_links, shards_of, version_links
from pipelines.inspection.lineage_subject import Prediction, Subject, read_subject
from pipelines.results.command_results import LineageResult, Link
from pipelines.results.datasets import readable_manifest
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir


def run(settings: LineageSettings) -> LineageResult:
    """Follow the links from a prediction or a model.

    Raises:
        UserError: there is no such model, file or image.
        CheckFailedError: a link is broken.
    """
    store, workdir = connect(settings), Workdir(settings.workdir)
    subject = read_subject(store, settings.targets[0], settings.key)
    if settings.check and subject.prediction is None:
        raise UserError(
            f"{settings.targets[0]}: has no evaluation whose prediction could be done again; run "
            f"pipelines/evaluate.py --model {settings.targets[0]} first"
        )
    links = list(_follow(store, workdir, subject, settings))
    result = LineageResult(target=settings.targets[0], checked=settings.check, links=links)
    show(
        settings,
        table(
            ["link", "name", "about"],
            [
                [link.kind, link.name, f"BROKEN: {link.problem}" if link.problem else link.detail]
                for link in links
            ],
        ),
    )
    if broken := [link for link in links if link.problem]:
        first = broken[0]
        raise CheckFailedError(f"{first.kind} {first.name}: {first.problem}", result)
    return result


def _follow(
    store: Store, workdir: Workdir, subject: Subject, settings: LineageSettings
) -> Iterator[Link]:
    prediction = subject.prediction
    if prediction:
        best = ", ".join(
            f"class {label} {probability:.3f}"
            for label, probability in list(
                zip(prediction.labels, prediction.probabilities, strict=True)
            )[:3]
        )
        detail = f"{prediction.key}: {best}"
        yield Link(kind="prediction", name=prediction.where, detail=detail)
    manifests = _manifests(workdir)
    trained_on = None
    for number, uri in enumerate(subject.models):
        recorded = subject.shards[number] if number < len(subject.shards) else None
        yield from version_links(store, uri, subject.versions)
        yield from model_links(store, uri, subject, number)
        content = recorded or shards_of(store, uri)
        if not content:
            problem = "nothing names it any more; train again to have a model that names its data"
            yield Link(kind="data set", name="unknown", problem=problem)
        else:
            trained_on = manifests.get(content)
            yield _data_set_link("data set", content, trained_on)
    of_evaluation = prediction is not None and prediction.kind == "evaluation"
    manifest = trained_on
    if subject.validation and of_evaluation:
        by_validation = {m.content_digest("val"): m for m in manifests.values()}
        manifest = by_validation.get(subject.validation)
        if manifest != trained_on or manifest is None:
            yield _data_set_link("validation images", subject.validation, manifest)
    if manifest:
        key = prediction.key if prediction and of_evaluation else None
        yield from _source_links(
            store, workdir, subject, manifest, key or None, check=settings.check and of_evaluation
        )
    if prediction and not of_evaluation:
        yield from _part_links(store, subject, prediction, check=settings.check)


def _manifests(workdir: Workdir) -> dict[str, Manifest]:
    """The workdir's complete data sets by content digest."""
    parent = storage.join(workdir.path, "shards")
    names = storage.list_folders(parent) if storage.is_folder(parent) else []
    found = [readable_manifest(storage.join(parent, name)) for name in names]
    return {manifest.content_digest(): manifest for manifest in found if manifest}


def _data_set_link(kind: str, content: str, manifest: Manifest | None) -> Link:
    if manifest is None:
        return Link(
            kind=kind,
            name=content,
            problem="is not in this workdir; give the --workdir that contains it, or run "
            "pipelines/preprocess.py on its source again",
        )
    images = sum(manifest.rows(split) for split in manifest.shards)
    return Link(kind=kind, name=manifest.folder, detail=f"{images:,} images, content {content}")


def _source_links(
    store: Store,
    workdir: Workdir,
    subject: Subject,
    manifest: Manifest,
    key: str | None,
    *,
    check: bool,
) -> Iterator[Link]:
    """From the data set to the bytes of one image, and its prediction from these."""
    uri = workdir.absolute(manifest.source)
    try:
        row = find_row(manifest, key)
    except UserError as error:
        yield Link(
            kind="shard",
            name=manifest.folder,
            problem=f"{one_line(error)}; run pipelines/preprocess.py --verify, which writes "
            "damaged shards again",
        )
        return
    if row is None:
        yield Link(kind="shard", name=manifest.folder, problem=f"has no image {key}; correct --key")
        return
    yield Link(kind="shard", name=row.shard, detail=f"row {row.key}")
    try:
        data, where = _original(uri, workdir, row)
    except (UserError, OSError, EOFError) as error:
        yield Link(
            kind="source",
            name=uri,
            problem=f"{one_line(error)}; restore it there, or run pipelines/preprocess.py on its "
            "new place",
        )
        return
    yield Link(kind="source", name=uri, detail=f"layout {manifest.layout}")
    yield where
    yield _sha256_link(data, row.sha256)
    if check and subject.prediction and hashlib.sha256(data).hexdigest() == row.sha256:
        try:
            problem = check_evaluated(store, subject, subject.prediction, manifest, row, data)
        except UserError as error:
            problem = one_line(error)
        yield Link(kind="check", name=row.key, detail="the prediction is the same", problem=problem)


def _original(uri: str, workdir: Workdir, row: FoundRow) -> tuple[bytes, Link]:
    """An image's bytes in the source, and where they are.

    Raises:
        UserError, OSError, EOFError: the source or the image can't be read any more.
    """
    source = read_source(uri, outside=workdir.path)
    index = pc.index(source.index["key"], row.key).as_py()
    if index < 0:
        raise UserError(f"has no image {row.key} any more")
    found = source.index.slice(index, 1).to_pylist()[0]
    data = read_image(source, found)
    if source.layout == "parquet":
        detail = f"{row.key}: row {found['offset']}"
    elif found["offset"]:
        detail = f"member {row.key}: {len(data):,} bytes at {found['offset']:,}"
    else:
        detail = f"{row.key}: {len(data):,} bytes"
    return data, Link(kind="image", name=found["path"], detail=detail)


def _sha256_link(data: bytes, recorded: str | None) -> Link:
    actual = hashlib.sha256(data).hexdigest()
    problem = (
        ""
        if actual == recorded
        else f"of the bytes now; when they were read, {recorded}; " + ("restore the original file")
    )
    return Link(kind="sha256", name=actual, detail="of the original bytes", problem=problem)


def _part_links(
    store: Store, subject: Subject, prediction: Prediction, *, check: bool
) -> Iterator[Link]:
    """The image of a prediction of batch inference, and its prediction from the bytes."""
    folder, _, name = prediction.where.rpartition("/")
    match = re.fullmatch(r"part-(\d+)\.parquet", name)
    try:
        items = read_items(folder, int(match[1]))[0] if match else []
        item: ListedItem | None = items[prediction.row]
    except (UserError, IndexError):
        item = None
    if item is None or item.path != prediction.key:
        yield Link(
            kind="image",
            name=prediction.key,
            problem="the listing beside the file is missing; put the file back into its output",
        )
        return
    place = f", {item.size:,} bytes at {item.offset:,}" if item.offset != WHOLE else ""
    yield Link(kind="image", name=item.file, detail=f"{item.path}{place}")
    if not check:
        yield Link(kind="sha256", name=str(prediction.sha256), detail="of the original bytes")
        return
    try:
        problem = check_part(store, subject.models, prediction, item)
    except (UserError, OSError) as error:
        problem = f"{one_line(error)}; restore what is missing"
    yield Link(kind="check", name=item.path, detail="the prediction is the same", problem=problem)


def main() -> NoReturn:
    """The command."""
    run_script(LineageSettings, run, __doc__)


if __name__ == "__main__":
    main()
