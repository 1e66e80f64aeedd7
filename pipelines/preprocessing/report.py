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
from pipelines.tracking.run import Run

TILES = 40
"""Images in a contact sheet."""
SAMPLED_SHARDS = 32
"""The histogram of original sizes reads at most so many shards; each is a random sample."""


def log_source(run: Run, uri: str, source: Source) -> None:
    """Log the raw images as an input of the run."""
    counts = Counter(source.index["split"].to_pylist())
    run.log_dataset(
        posixpath.basename(uri),
        source.source_fingerprint,
        uri,
        "raw images",
        f"{source.layout}: {counts['train']:,} train, {counts['val']:,} val, "
        f"{len(source.labels):,} classes",
    )
    rules = sorted(source.account.counts().ignored.items())
    ignored = {"rule": [rule for rule, _ in rules], "files": [count for _, count in rules]}
    run.log_table(pa.table(ignored), "ignored_files.json")


def log_result(run: Run, manifest: Manifest, source: Source) -> None:
    """Log the shards, the rejects and the figures of a complete data set."""
    profile = f"{manifest.rows('train'):,} train, {manifest.rows('val'):,} val"
    run.log_dataset("shards", manifest.content_digest(), manifest.folder, "shards", profile)
    _log_images(run, manifest)
    _log_rejects(run, manifest, source)
    statistics = read_statistics(manifest.statistics_path)
    mean = figures.mean_image(statistics.mean_image, statistics.rgb_covariance)
    run.log_figure(mean, "mean_image.png")
    run.log_figure(figures.original_sizes(*_original_sizes(manifest)), "original_sizes.png")


def _log_images(run: Run, manifest: Manifest) -> None:
    """The first rows of the first shard, which are as random as any."""
    with ThreadPoolExecutor(2) as threads:
        rows, images = read_images(manifest.row_groups("train")[0], ["label"], threads)
    captions = [manifest.labels[label].name for label in rows["label"][:TILES].to_pylist()]
    sheet = figures.contact_sheet(images[:TILES], captions, "Training images, 256x256")
    run.log_figure(sheet, "images.png")


def _log_rejects(run: Run, manifest: Manifest, source: Source) -> None:
    """All rejects as a table, their counts by reason as another, and pictures of the first."""
    with storage.open_input(manifest.rejects_path) as file:
        rejects = pq.read_table(file)
    run.log_table(rejects, "rejects.json")
    counts = rejects.group_by(["reason", "split"]).aggregate([("key", "count")])
    counts = counts.rename_columns(["reason", "split", "images"])
    run.log_table(counts.sort_by([("images", "descending")]), "rejects_by_reason.json")
    if not len(rejects):
        return
    shown = rejects.slice(0, TILES)
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


def _original_sizes(manifest: Manifest) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Width and height of the originals."""
    columns = []
    for shard in manifest.shards["train"][:SAMPLED_SHARDS]:
        with storage.open_input(storage.join(manifest.folder, shard.file)) as file:
            columns.append(pq.read_table(file, columns=["width", "height"]))
    table = pa.concat_tables(columns)
    return table["width"].to_numpy(), table["height"].to_numpy()
