"""Validation errors of the project and of a plain PyTorch script, with equal settings and data.

    python tests/benchmarks/learning.py --workdir work --epochs 2 --drop 1 --seeds 3 --output l.json

``--workdir`` contains preprocessed shards (``pipelines/preprocess.py``). For each seed the
project's loop and ``peer_training.py`` train one after the other. The validation errors of the
centre view are compared. The project's loop runs here without Ray (``training_run.py``).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from training_run import recipe_with, train

from alexnet.shards.manifest import Manifest, read_manifest
from pipelines.results.records import newest
from pipelines.results.stage_results import PreprocessResult
from pipelines.workdir import Workdir

PEER = Path(__file__).with_name("peer_training.py")


def train_project(manifest: Manifest, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train with one seed. Returns the last epoch's errors."""
    recipe = recipe_with(options.batch_size, options.learning_rate, [options.drop])
    line: dict[str, Any] = {}
    for errors in train(manifest, recipe, seed, options.epochs):
        line = asdict(errors)
        print(json.dumps({"project": seed, **line}), flush=True)
    return line


def train_peer(folder: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The same with the plain script."""
    command = [sys.executable, str(PEER), str(folder), f"--seed={seed}"]
    names = ("epochs", "drop", "batch_size", "learning_rate")
    command += [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
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
    """Write the shards' images as files, in the folders that ``ImageFolder`` reads."""
    for split in ("train", "val"):
        for shard in manifest.shards[split]:
            file = pq.ParquetFile(Path(manifest.folder, shard.file))
            for batch in file.iter_batches(64, columns=["key", "wnid", "image"]):
                for row in batch.to_pylist():
                    class_folder = folder / split / row["wnid"]
                    class_folder.mkdir(parents=True, exist_ok=True)
                    name = row["key"].replace("/", "_").rpartition(".")[0]
                    (class_folder / f"{name}.jpg").write_bytes(row["image"])
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
    options = parser.parse_args()
    torch.set_num_threads(2)
    preprocessed = newest(Workdir(options.workdir), PreprocessResult, "train")
    manifest = read_manifest(preprocessed.result.shards)
    runs: dict[str, list[dict[str, Any]]] = {"project": [], "peer": []}
    with tempfile.TemporaryDirectory(prefix="alexnet-learning-") as scratch:
        folder = unpack(manifest, Path(scratch))
        for seed in range(options.seeds):
            runs["project"].append(train_project(manifest, options, seed))
            runs["peer"].append(train_peer(folder, options, seed))
    result: dict[str, Any] = {"settings": vars(options), "runs": runs}
    for name, lines in runs.items():
        errors = [line["top1_error"] for line in lines]
        result[name] = {
            "top1_error": statistics.mean(errors),
            "deviation": statistics.stdev(errors) if len(errors) > 1 else None,
        }
    Path(options.output).write_text(json.dumps(result, indent=2))
    print(json.dumps({name: result[name] for name in runs}))


if __name__ == "__main__":
    main()
