"""A dry run: what a source holds, and an estimate of the work; nothing is written."""

import os
import random
import time
from collections import Counter

from alexnet import storage
from alexnet.shards.codec import Encoding, encode
from alexnet.shards.decode import Decoded, decode
from alexnet.shards.format import SPLITS
from alexnet.sources import parquet_extract
from alexnet.sources.read import Source, read_image
from pipelines.console.progress import duration
from pipelines.results import DryRunResult
from pipelines.settings import PreprocessSettings

SAMPLED_IMAGES = 64
"""Images that are read for the estimate."""


def inspect(
    settings: PreprocessSettings, uri: str, source: Source, encoding: Encoding
) -> DryRunResult:
    """Print images by class and split, the shards that they would fill, size and time.

    Size and time are estimated from some random images, which are read, decoded and encoded
    here; the time is for this machine's cores.
    """
    splits, labels = source.index["split"].to_pylist(), source.index["label"].to_pylist()
    counts = Counter(zip(splits, labels, strict=True))
    images = Counter(splits)
    print(f"{uri}: {source.layout}")
    print(f"{'class':<20}{'train':>10}{'val':>10}  name")
    for number, label in enumerate(source.labels):
        train, val = (counts[split, number] for split in SPLITS)
        print(f"{label.wnid:<20}{train:>10,}{val:>10,}  {label.name}")
    shards = {split: -(-images[split] // settings.rows_per_shard) for split in SPLITS}
    total = images.total()
    size, seconds = _measure_sample(source, encoding, settings.seed)
    cores = os.cpu_count() or 1
    result = DryRunResult(
        images=total,
        train_images=images["train"],
        val_images=images["val"],
        classes=len(source.labels),
        shards=sum(shards.values()),
        source_bytes=_source_bytes(source),
        estimated_bytes=round(total * size),
        estimated_seconds=round(total * seconds / cores, 3),
    )
    print(
        f"{images['train']:,} train and {images['val']:,} val images would fill "
        f"{shards['train']:,} and {shards['val']:,} shards, about "
        f"{result.estimated_bytes / 1e9:,.2f} GB, in about "
        f"{duration(total * seconds / cores)} on this machine's {cores} cores"
    )
    return result


def _source_bytes(source: Source) -> int:
    if source.layout == "parquet":
        return sum(storage.size(path) for path in parquet_extract.parquet_files(source.index))
    return sum(max(0, size) for size in source.index["size"].to_pylist())


def _measure_sample(source: Source, encoding: Encoding, seed: int) -> tuple[float, float]:
    """Mean bytes in a shard and mean seconds of work for one image."""
    count = min(SAMPLED_IMAGES, len(source.index))
    rows = random.Random(seed).sample(range(len(source.index)), count)
    stored = 0
    started = time.perf_counter()
    for row in source.index.take(rows).to_pylist():
        try:
            decoded = decode(read_image(source, row))
        except (FileNotFoundError, EOFError):
            continue  # The image will be rejected.
        if isinstance(decoded, Decoded):
            stored += len(encode(decoded.pixels, encoding))
    return stored / count, (time.perf_counter() - started) / count
