"""What a source holds and what preprocessing it would take, found out without doing it."""

import os
import random
import time
from collections import Counter

from alexnet import spool, storage
from alexnet.images import RAW_BYTES, Decoded, decode, encode_jpeg
from alexnet.shards import SPLITS
from alexnet.sources import Source, read_image
from pipelines.progress import duration
from pipelines.settings import PreprocessSettings
from pipelines.stages import Figures

TRIED = 64
"""Images that are read for the estimate."""


def inspect(settings: PreprocessSettings, place: str, source: Source) -> Figures:
    """Print images by class and split, the shards that they would fill, size and time.

    Size and time are estimated from some random images, which are read, decoded and encoded
    here; the time is for this machine's cores.
    """
    counts = {
        split: Counter(
            label
            for label, which in zip(
                source.index["label"].to_pylist(), source.index["split"].to_pylist(), strict=True
            )
            if which == split
        )
        for split in SPLITS
    }
    print(f"{place}: {source.form}")
    print(f"{'class':<20}{'train':>10}{'val':>10}  name")
    for number, label in enumerate(source.labels):
        train, val = (counts[split][number] for split in SPLITS)
        print(f"{label.wnid:<20}{train:>10,}{val:>10,}  {label.name}")
    images = {split: counts[split].total() for split in SPLITS}
    shards = {split: -(-images[split] // settings.rows_per_shard) for split in SPLITS}
    total = sum(images.values())
    size, seconds = _try_some(settings, source)
    cores = os.cpu_count() or 1
    result: Figures = {
        "stage": "preprocess",
        "dry_run": True,
        "images": total,
        "train_images": images["train"],
        "val_images": images["val"],
        "classes": len(source.labels),
        "shards": sum(shards.values()),
        "source_bytes": _source_bytes(source),
        "estimated_bytes": round(total * size),
        "estimated_seconds": round(total * seconds / cores, 3),
    }
    print(
        f"{images['train']:,} train and {images['val']:,} val images would fill "
        f"{shards['train']:,} and {shards['val']:,} shards, about "
        f"{result['estimated_bytes'] / 1e9:,.2f} GB, in about "
        f"{duration(total * seconds / cores)} on this machine's {cores} cores"
    )
    return result


def _source_bytes(source: Source) -> int:
    if source.form == "parquet":
        return sum(storage.size(path) for path in spool.files(source.index))
    return sum(source.index["size"].to_pylist())


def _try_some(settings: PreprocessSettings, source: Source) -> tuple[float, float]:
    """Mean bytes in a shard and mean seconds of work for one image."""
    chosen = random.Random(settings.seed).sample(
        range(len(source.index)), min(TRIED, len(source.index))
    )
    stored = 0
    begun = time.perf_counter()
    for row in source.index.take(chosen).to_pylist():
        decoded = decode(read_image(source, row))
        if not isinstance(decoded, Decoded):
            continue
        if settings.encoding == "raw":
            stored += RAW_BYTES
        else:
            stored += len(encode_jpeg(decoded.pixels, quality=settings.jpeg_quality))
    return stored / len(chosen), (time.perf_counter() - begun) / len(chosen)
