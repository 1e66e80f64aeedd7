"""How fast shards become training batches, against peers in the same minutes.

    python tests/benchmarks/ingest.py --output ingest.json

The images of ``$ALEXNET_REAL_DATA/ilsvrc2012-ten``, or generated ones, are sharded by the
project's own code as JPEG and raw. Each contestant, a process of its own, makes float batches of
128 random 224x224 crops, mirrored, tinted and centred, (128, 3, 224, 224) on the CPU, for some
epochs; rounds are interleaved. The peers: ``DataLoader(ImageFolder)`` with two workers over the
JPEG shards' very bytes as files, and plain Ray Data over the shards, which does not shuffle.

Of the last epoch: ``epoch`` is images over seconds from the start of iteration to its end,
``steady`` leaves out the first few batches, which favours those who have prepared many more by
then: Ray Data makes whole blocks before it yields a batch, and our reader of raw shards has read
4,096 rows ahead. ``startup`` is the time to the first batch of the first epoch, with all starting
of workers. ``ratios`` are medians over rounds of ours over the peer's. ``uncropped`` is our reader
alone, which is what feeds a GPU: cropping and the rest happen there. FFCV is no contestant: it
needs OpenCV's headers.

As measured with 9,216 images of 24 kB on two cores, epoch and steady: 4.4 and 4.5 times the
DataLoader, 4.2 and 2.7 times Ray Data over JPEG shards, 6.4 and 5.2 times over raw ones. Raw
shards are 1.5 and 1.9 times as fast as JPEG ones, and 2.3 and 3.1 times in the reader alone.
So Ray Data's iterator, which would also need an exact position to
resume from, is not used for training.

``memory`` compares peak resident memory (MB) over manifests that name the same shards once and
several times; ``mixing`` says how many row groups and shards the rows of one batch of 128 come
from in a data set of ILSVRC2012's size, and in a uniform shuffle of it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from preprocess import jpegs, make_source

from alexnet.allocation import KEEP_FREED_MEMORY
from alexnet.recipes import PAPER
from alexnet.shards.codec import Encoding
from alexnet.shards.format import ROW_GROUP_ROWS, Manifest, read_manifest, write_manifest
from alexnet.shards.loader import ShardLoader
from alexnet.shards.order import epoch_order
from alexnet.shards.plan import write_plan
from alexnet.shards.write import make_shard
from alexnet.sources.read import read_source
from alexnet.training.augment import draw, pca_axes, training_crops

HERE = Path(__file__).parent
BATCH = 128
FIRST = 5
"""Batches before the steady rate is measured."""
ROWS_PER_SHARD = 512
COVARIANCE = np.array([[4800.0, 4300, 3700], [4300, 4700, 4400], [3700, 4400, 5100]])


def make_shards(images: int, folder: Path) -> dict[str, Manifest]:
    """The same training images as JPEG and as raw shards."""
    real = os.environ.get("ALEXNET_REAL_DATA")
    place = Path(real, "ilsvrc2012-ten") if real else folder / "source"
    if not place.is_dir():
        make_source(jpegs(folder), place, images * 20 // 19 + 400)
    source, made = read_source(str(place)), {}
    for kind in ("jpeg", "raw"):
        root, encoding = str(folder / kind), Encoding(kind=kind, jpeg_quality=95)
        units = write_plan(root, source, encoding, ROWS_PER_SHARD, 0)
        units = [unit for unit in units if unit.split == "train"][: -(-images // ROWS_PER_SHARD)]
        made[kind] = Manifest(
            folder=root,
            digest="",
            source=str(place),
            form=source.form,
            settings={},
            labels=source.labels,
            shards={"train": tuple(make_shard(unit).shard for unit in units), "val": ()},
            rejected={},
            files={},
        )
        write_manifest(made[kind])
    return made


def write_files(manifest: Manifest, folder: Path) -> None:
    """The rows of JPEG shards as files in ImageFolder's form."""
    for shard in manifest.shards["train"]:
        rows = pq.read_table(Path(manifest.folder, shard.file), columns=["wnid", "image"])
        for number, row in enumerate(rows.to_pylist()):
            path = folder / row["wnid"] / f"{Path(shard.file).stem}-{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"])


def clock(epoch: Callable[[int], Iterable[int]], epochs: int) -> None:
    """Print a contestant's figures; an epoch yields the number of images of each batch."""
    startup = None
    for number in range(epochs):
        done, early, begun = 0, 0, time.monotonic()
        warm = begun
        for batch, images in enumerate(epoch(number)):
            done += images
            if startup is None:
                startup = time.monotonic() - begun
            if batch == FIRST - 1:
                early, warm = done, time.monotonic()
        ended = time.monotonic()
    found = {
        "images": done,
        "startup": startup,
        "epoch": done / (ended - begun),
        "steady": (done - early) / (ended - warm),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }
    print(json.dumps(found))


def ours(folder: str, epochs: int, repeat: int, *, crop: bool) -> None:
    """The contestant of this project, as ``alexnet.training`` uses it."""
    manifest = read_manifest(folder)
    repeated = {"train": manifest.shards["train"] * repeat, "val": ()}
    reader = ShardLoader(manifest=replace(manifest, shards=repeated), batch_size=BATCH, seed=0)
    axes, mean = pca_axes(PAPER, COVARIANCE), torch.full((3, 224, 224), 120.0)

    def epoch(number: int) -> Iterator[int]:
        for batch in reader.epoch(number):
            if crop:
                draws = draw(PAPER, axes, batch.rows, seed=0, epoch=number, offset=batch.offset)
                patches = training_crops(
                    batch.images, draws.take(batch.positions), mean, PAPER.training_scale
                )
                assert (patches.shape[1:], patches.dtype) == ((3, 224, 224), torch.float32)
            yield len(batch.images)

    clock(epoch, epochs)


def run(script: str, *arguments: str) -> dict[str, float]:
    """A contestant's figures."""
    environment = {name: v for name, v in os.environ.items() if name != "RAY_ADDRESS"}
    if "--ours" in arguments:
        environment |= KEEP_FREED_MEMORY  # As in every training worker.
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(script, *arguments, {name: round(value, 2) for name, value in found.items()}, flush=True)
    return found


def in_cache(*folders: Path) -> None:
    """Read all files once, so that nobody pays for the disk."""
    for folder in folders:
        for path in folder.rglob("*.*"):
            path.read_bytes()


def mixing(groups: int, rows_per_shard: int) -> dict[str, Any]:
    """Row groups and shards among the rows of a batch; shuffled per window and uniformly."""
    sizes = [ROW_GROUP_ROWS] * groups
    order, _ = epoch_order(sizes, 0, 0)
    uniform = np.random.default_rng(0).permutation(len(order))

    def distinct(rows: NDArray[np.int64], size: int) -> float:
        whole = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)
        sources = np.sort(whole // size, axis=1)
        return round(float((np.diff(sources, axis=1) > 0).sum(axis=1).mean() + 1), 2)

    return {
        "rows": len(order),
        "rows_per_shard": rows_per_shard,
        "row_groups": {
            "ours": distinct(order, ROW_GROUP_ROWS),
            "uniform": distinct(uniform, ROW_GROUP_ROWS),
        },
        "shards": {
            "ours": distinct(order, rows_per_shard),
            "uniform": distinct(uniform, rows_per_shard),
        },
    }


def median(rounds: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(found[key] for found in rounds), 2)


def ratio(mine: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> float:
    """The median of the ratios of runs that stood side by side; above 1: the first is faster."""
    pairs = zip(mine, theirs, strict=True)
    return round(statistics.median(a[key] / b[key] for a, b in pairs), 3)


def compare(images: int, repeats: int, epochs: int, memory: int) -> dict[str, Any]:
    """Everything that reads images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = make_shards(images, folder)
        write_files(made["jpeg"], folder / "files")
        jpeg, raw, files, count = str(folder / "jpeg"), str(folder / "raw"), "files", str(epochs)
        contestants = {
            "ours_jpeg": ("ingest.py", "--ours", jpeg, "--epochs", count),
            "ours_raw": ("ingest.py", "--ours", raw, "--epochs", count),
            "ours_jpeg_uncropped": ("ingest.py", "--ours", jpeg, "--epochs", count, "--uncropped"),
            "ours_raw_uncropped": ("ingest.py", "--ours", raw, "--epochs", count, "--uncropped"),
            "data_loader": ("peer_dataloader.py", str(folder / files), count),
            "ray_data_jpeg": ("peer_ray_ingest.py", jpeg, count),
            "ray_data_raw": ("peer_ray_ingest.py", raw, count),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        for _ in range(repeats):
            for name, command in contestants.items():
                in_cache(Path(command[2 if name.startswith("ours") else 1]))
                runs[name].append(run(*command))
        result: dict[str, Any] = {
            "images": made["jpeg"].rows("train"),
            "bytes_per_jpeg": sum(shard.bytes for shard in made["jpeg"].shards["train"])
            // made["jpeg"].rows("train"),
            "cores": os.cpu_count(),
            "rounds": repeats,
        }
        for key in ("steady", "epoch", "startup"):
            result[key] = {name: median(found, key) for name, found in runs.items()}
        result["ratios"] = {
            f"{first} / {second}": {
                key: ratio(runs[first], runs[second], key) for key in ("steady", "epoch")
            }
            for first, second in (
                ("ours_jpeg", "data_loader"),
                ("ours_jpeg", "ray_data_jpeg"),
                ("ours_raw", "ray_data_raw"),
                ("ours_raw", "ours_jpeg"),
                ("ours_raw_uncropped", "ours_jpeg_uncropped"),
            )
        }
        if memory > 1:
            result["memory"] = {}
            for name in ("ours_jpeg", "ours_raw"):
                once, often = (run(*contestants[name], f"--repeat={n}") for n in (1, memory))
                result["memory"][name] = {
                    "images": [once["images"], often["images"]],
                    "peak_mb": [round(once["peak_mb"]), round(often["peak_mb"])],
                    "ratio": round(often["peak_mb"] / once["peak_mb"], 3),
                }
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2, help="epochs in each process")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, default=4, help="how many times as many images")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--uncropped", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        ours(options.ours, options.epochs, options.repeat, crop=not options.uncropped)
        return
    result = compare(options.images, options.repeats, options.epochs, options.memory)
    result["mixing"] = mixing(20_000, ROWS_PER_SHARD)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
