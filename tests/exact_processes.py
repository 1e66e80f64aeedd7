"""Exact training workers as processes of one computer: what ``test_exact`` runs in each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from factories import SEED, start_training, train_context

from alexnet.recipes import SOURCE145
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import read_manifest
from alexnet.shards.order import MICROBATCHES
from alexnet.training.exact import ExactWorker
from alexnet.training.loop import StepSums, train_epoch
from alexnet.training.optimizer import EpochRates
from alexnet.training.validation import validate

BATCH = 7
"""Of 39 rows: microbatches of one and two images, and a last batch of 4."""


def train(folder: str, rank: int, world_size: int, threads: int) -> dict[str, Any]:
    """The weights, the losses of an epoch and the validation's sums on this worker."""
    manifest = read_manifest(folder)
    context = replace(
        train_context(manifest, SOURCE145),
        exact=ExactWorker.create(rank, world_size, threads),
    )
    loader = ShardLoader(
        manifest=manifest,
        batch_size=BATCH,
        seed=SEED,
        rank=rank,
        world_size=world_size,
        microbatches=MICROBATCHES,
    )
    network, optimizer = start_training(SOURCE145)
    sums = []
    for step in train_epoch(network, optimizer, loader, context, EpochRates(0.001), epoch=0):
        step_sums = StepSums()
        step_sums.add(step)
        sums.append(step_sums.read())
    return {
        "weights": {name: p.detach() for name, p in network.named_parameters()},
        "sums": [*sums, validate(network, loader, context)],
    }


def run_worker(rank: int, world_size: int, dataset: str, folder: str) -> None:
    """Train with other workers, and save the result; each has another number of threads."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    torch.save(train(dataset, rank, world_size, 1 + rank % 2), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
