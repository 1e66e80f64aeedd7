"""The MLflow run of ``preprocess``: the source, the data set, the rejects and their figures."""

import posixpath
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet import storage
from alexnet.errors import UserError
from alexnet.plots import figures
from alexnet.shards.codec import read_images
from alexnet.shards.decode import render_reject
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.sources.read import Source, read_image
from pipelines.results.decorations import run_decorations
from pipelines.tracking.run import Run

TILES = 40
"""Images in a contact sheet."""
SAMPLED_SHARDS = 32
"""The histogram of original sizes reads at most so many shards; each is a random sample."""


def log_result(run: Run, uri: str, manifest: Manifest, source: Source) -> None:
    """Log the source, the shards, the rejects and the figures of a complete data set."""
    run_decorations(
        "preprocess",
        {
            "the source": lambda: _log_source(run, uri, source),
            "the shards": lambda: _log_shards(run, manifest),
            "the table of rejects": lambda: _log_rejects(run, manifest),
            "images.png": lambda: _log_images(run, manifest),
            "rejects.png": lambda: _log_rejected_images(run, manifest, source),
            "mean_image.png": lambda: _log_mean_image(run, manifest),
            "original_sizes.png": lambda: _log_original_sizes(run, manifest),
        },
    )


def _log_source(run: Run, uri: str, source: Source) -> None:
    counts = Counter(source.index["split"].to_pylist())
    run.log_dataset(
        posixpath.basename(uri) or uri,
        source.source_fingerprint,
        uri,
        "raw images",
        f"{source.layout}: {counts['train']:,} train, {counts['val']:,} val, "
        f"{len(source.labels):,} classes",
    )
    rules = sorted(source.account.counts().ignored.items())
    ignored = {"rule": [rule for rule, _ in rules], "files": [count for _, count in rules]}
    run.log_table(pa.table(ignored), "ignored_files.json")


def _log_shards(run: Run, manifest: Manifest) -> None:
    profile = f"{manifest.rows('train'):,} train, {manifest.rows('val'):,} val"
    run.log_dataset("shards", manifest.content_digest(), manifest.folder, "shards", profile)
    run.set_tags({"shards.digest": manifest.plan_digest})


def _log_mean_image(run: Run, manifest: Manifest) -> None:
    statistics = read_statistics(manifest.statistics_path)
    mean = figures.mean_image(statistics.mean_image, statistics.rgb_covariance)
    run.log_figure(mean, "mean_image.png")


def _log_images(run: Run, manifest: Manifest) -> None:
    """The first rows of the first shard, which are as random as any."""
    with ThreadPoolExecutor(2) as threads:
        rows, images = read_images(manifest.row_groups("train")[0], ["label"], threads)
    captions = [manifest.labels[label].name for label in rows["label"][:TILES].to_pylist()]
    sheet = figures.contact_sheet(images[:TILES], captions, "Training images, 256x256")
    run.log_figure(sheet, "images.png")


def _read_rejects(manifest: Manifest) -> pa.Table:
    with storage.open_input(manifest.rejects_path) as file:
        return pq.read_table(file)


def _log_rejects(run: Run, manifest: Manifest) -> None:
    """All rejects as a table, and their counts by reason as another."""
    rejects = _read_rejects(manifest)
    run.log_table(rejects, "rejects.json")
    counts = rejects.group_by(["reason", "split"]).aggregate([("key", "count")])
    counts = counts.rename_columns(["reason", "split", "images"])
    run.log_table(counts.sort_by([("images", "descending")]), "rejects_by_reason.json")


def _log_rejected_images(run: Run, manifest: Manifest, source: Source) -> None:
    """Pictures of the first rejects."""
    shown = _read_rejects(manifest).slice(0, TILES)
    if not len(shown):
        return
    rows = source.index.filter(pc.is_in(source.index["key"], shown["key"].combine_chunks()))
    tiles = np.stack([_tile(source, row) for row in rows.to_pylist()])
    captions = [
        f"{reason}: {posixpath.basename(key)}"
        for key, reason in zip(shown["key"].to_pylist(), shown["reason"].to_pylist(), strict=True)
    ]
    title = "Rejected files, as far as they can be seen"
    run.log_figure(figures.contact_sheet(tiles, captions, title), "rejects.png")


def _tile(source: Source, row: dict[str, Any]) -> NDArray[np.uint8]:
    """What can be seen of one row of the index, (256, 256, 3)."""
    try:
        data = read_image(source, row)
    except (UserError, OSError, EOFError):
        data = b""
    return render_reject(data)


def _log_original_sizes(run: Run, manifest: Manifest) -> None:
    run.log_figure(figures.original_sizes(*_original_sizes(manifest)), "original_sizes.png")


def _original_sizes(manifest: Manifest) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Width and height of the originals."""
    columns = []
    for shard in manifest.shards["train"][:SAMPLED_SHARDS]:
        with storage.open_input(storage.join(manifest.folder, shard.file)) as file:
            columns.append(pq.read_table(file, columns=["width", "height"]))
    table = pa.concat_tables(columns)
    return table["width"].to_numpy(), table["height"].to_numpy()
