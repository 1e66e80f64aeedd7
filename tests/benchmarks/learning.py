"""Does the project learn what a plain PyTorch script learns? Same recipe, epochs and data.

    python tests/benchmarks/learning.py --workdir work --epochs 2 --drop 1 --seeds 3 --output l.json

``--workdir`` holds preprocessed shards (``pipelines/preprocess.py``). Each seed is trained by the
project's loop and by ``peer_training.py``, one after the other; compared are the validation errors
of the centre view. The project's side is run without Ray; ``tests/test_workflow.py`` holds a Ray
run to the same bits.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import SOURCE145
from alexnet.shards.format import Manifest, read_manifest
from alexnet.shards.loader import ShardLoader
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import mean_crop, pca_axes
from alexnet.training.loop import TrainContext, train_epoch, validate
from alexnet.training.optimizer import build_optimizer, rates_at, set_rates, with_drops
from pipelines import stages

PEER = Path(__file__).with_name("peer_training.py")


def ours(manifest: Manifest, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with one seed; the last epoch's errors."""
    recipe = replace(
        SOURCE145,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        schedule=with_drops(SOURCE145.schedule, [given.drop]),
    )
    statistics_ = read_statistics(f"{manifest.folder}/statistics.npz")
    setup = TrainContext(
        recipe=recipe,
        means=[mean_crop(statistics_.mean_image)],
        axes=pca_axes(recipe, statistics_.rgb_covariance),
        seed=seed,
    )
    reader = ShardLoader(manifest=manifest, batch_size=recipe.batch_size, seed=seed)
    network = AlexNet(recipe, len(manifest.labels))
    initialize(network, recipe, seed)
    optimizer = build_optimizer(network, recipe)
    begun = time.monotonic()
    errors: list[float] = []
    for epoch in range(given.epochs):
        rates = rates_at(recipe.schedule, recipe.learning_rate, epoch, errors)
        set_rates(optimizer, rates)
        for _ in train_epoch(network, optimizer, reader, setup, rates, epoch=epoch):
            pass
        found = validate(network, manifest, setup)
        errors.append(found.top1_error)
        line = {
            "epoch": epoch + 1,
            "top1_error": found.top1_error,
            "top5_error": found.top5_error,
            "seconds": time.monotonic() - begun,
        }
        print(json.dumps({"ours": seed, **line}), flush=True)
    return line


def peer(folder: Path, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The same by the plain script."""
    command = [sys.executable, str(PEER), str(folder), f"--seed={seed}"]
    names = ("epochs", "drop", "batch_size", "learning_rate")
    command += [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in names]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(json.loads(line))
            print(json.dumps({"peer": seed, **lines[-1]}), flush=True)
    assert process.returncode == 0
    last: dict[str, Any] = lines[-1]
    return last


def unpack(manifest: Manifest, folder: Path) -> Path:
    """The shards' images as files, in the folders that ``ImageFolder`` reads."""
    for split in ("train", "val"):
        for shard in manifest.shards[split]:
            file = pq.ParquetFile(Path(manifest.folder, shard.file))
            for batch in file.iter_batches(64, columns=["key", "wnid", "image"]):
                for row in batch.to_pylist():
                    place = folder / split / row["wnid"]
                    place.mkdir(parents=True, exist_ok=True)
                    name = row["key"].replace("/", "_").rpartition(".")[0]
                    (place / f"{name}.jpg").write_bytes(row["image"])
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", required=True)
    for name, default in (("epochs", 2), ("drop", 1), ("seeds", 3), ("batch-size", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    given = parser.parse_args()
    torch.set_num_threads(2)
    manifest = read_manifest(stages.require(given.workdir, "preprocess").figures["shards"])
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory(prefix="alexnet-learning-") as scratch:
        folder = unpack(manifest, Path(scratch))
        for seed in range(given.seeds):
            runs["ours"].append(ours(manifest, given, seed))
            runs["peer"].append(peer(folder, given, seed))
    result: dict[str, Any] = {"settings": vars(given), "runs": runs}
    for name, lines in runs.items():
        errors = [line["top1_error"] for line in lines]
        result[name] = {
            "top1_error": statistics.mean(errors),
            "deviation": statistics.stdev(errors) if len(errors) > 1 else None,
        }
    Path(given.output).write_text(json.dumps(result, indent=2))
    print(json.dumps({name: result[name] for name in runs}))


if __name__ == "__main__":
    main()
