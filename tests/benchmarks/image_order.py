"""Whether it matters that images have the same order in every epoch, as the 2012 source has them.

    python tests/benchmarks/image_order.py work/shards/DIGEST --device cuda --output order.json

Trains ``source145`` on preprocessed images once with ``--shuffle once`` and once with
``--shuffle every-epoch`` for each seed. Both have the same initial weights and the same order in
the first epoch. ``--train-shards`` and ``--val-shards`` use some of the shards, ``--towers 1`` and
``--hidden`` a smaller network, for CPUs. Without ``--drops`` the rate drops after 5/8 and 7/8 of
the epochs. Final errors are means of the last ``--last`` epochs, which differ less by chance than
one. Each training is a process; ``--parallel`` of them run at the same time, which changes only how
long they take.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from training_run import EpochErrors, recipe_with, train

from alexnet.model.precision import Precision
from alexnet.recipes import SOURCE145, ablate
from alexnet.shards.manifest import read_manifest
from alexnet.training.network import Execution

ORDERS = {"once": False, "every-epoch": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One of the trainings, and its errors after each epoch."""

    order: str
    seed: int
    epochs: list[EpochErrors]


def run(options: argparse.Namespace, order_and_seed: tuple[str, int]) -> Training:
    """Train with one order and seed."""
    order, seed = order_and_seed
    torch.set_num_threads(options.threads)
    precision: Precision = options.precision
    manifest = read_manifest(options.shards)
    parts = {"train": options.train_shards, "val": options.val_shards}
    shards = {split: manifest.shards[split][:count] for split, count in parts.items()}
    recipe = recipe_with(options.batch_size, options.learning_rate, options.drops)
    if options.towers == 1:
        recipe = replace(ablate(recipe, towers=1), schedule=recipe.schedule)
    errors = []
    for epoch in train(
        replace(manifest, shards=shards),
        replace(recipe, hidden=options.hidden),
        seed,
        options.epochs,
        reshuffle=ORDERS[order],
        device=torch.device(options.device),
        execution=Execution(precision=precision),
        threads=options.threads,
    ):
        errors.append(epoch)
        print(json.dumps({"order": order, "seed": seed} | asdict(epoch)), flush=True)
    return Training(order=order, seed=seed, epochs=errors)


def compare(trainings: Iterable[Training], last: int) -> dict[str, Any]:
    """Final errors by order and seed, and the differences between the two orders of each seed."""
    final = {(training.order, training.seed): training.epochs[-last:] for training in trainings}
    seeds = sorted({seed for _, seed in final})
    result: dict[str, Any] = {}
    for name in ("top1_error", "top5_error", "train_loss", "loss"):
        values = {
            order: [
                statistics.mean(getattr(epoch, name) for epoch in final[order, seed])
                for seed in seeds
            ]
            for order in ORDERS
        }
        differences = [a - b for a, b in zip(values["once"], values["every-epoch"], strict=True)]
        result[name] = values | {
            "once minus every-epoch": differences,
            "mean difference": statistics.mean(differences),
            "its standard error": (
                statistics.stdev(differences) / len(seeds) ** 0.5 if len(seeds) > 1 else None
            ),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shards", help="folder with manifest.json")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--drops", type=int, nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--train-shards", type=int)
    parser.add_argument("--val-shards", type=int)
    parser.add_argument("--towers", type=int, choices=(1, 2), default=2)
    parser.add_argument("--hidden", type=int, default=SOURCE145.hidden)
    parser.add_argument("--last", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "tf32", "bf16"), default="float32")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.threads = max(1, (os.cpu_count() or 1) // options.parallel)
    if options.drops is None:
        options.drops = [options.epochs * 5 // 8, options.epochs * 7 // 8]
    work = [(order, seed) for seed, order in product(range(options.seeds), ORDERS)]
    # One process for each training: a CUDA context cannot be inherited.
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.parallel, maxtasksperchild=1) as pool:
        trainings = pool.map(partial(run, options), work, chunksize=1)
    summary = {
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "final": compare(trainings, options.last),
        "trainings": [asdict(training) for training in trainings],
    }
    print(json.dumps(summary["final"], indent=2))
    if options.output:
        options.output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
