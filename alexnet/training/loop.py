"""One step and one epoch of training, and the centre-view check after it.

Nothing in a step waits for a device: results stay tensors until somebody asks for numbers.
"""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.metrics import Errors
from alexnet.recipes import Recipe
from alexnet.shards.codec import decode_images
from alexnet.shards.format import Manifest, read_row_group
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.training.augment import CENTRE_VIEW, draw, ten_crop, training_crops
from alexnet.training.optimizer import EpochRates, MomentumSGD, apply_warmup, set_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext:
    """What stays the same over a whole run."""

    recipe: Recipe
    means: Sequence[Tensor]
    """The mean image's central patch, (3, 224, 224) float32, on each device that holds a tower."""
    axes: NDArray[np.float64]
    """The colour noise's axes, from ``augment.pca_axes``."""
    seed: int
    bf16: bool = False
    """Products of matrices and convolutions in bfloat16, under ``torch.autocast``."""
    warmup_rows: int = 0
    """The learning rate rises while this many rows are seen (``optimizer.apply_warmup``)."""


class Step(NamedTuple):
    """What one update did, this worker's share of it."""

    loss: Tensor
    """Sum of cross-entropies, on the first device."""
    top1_wrong: Tensor
    top5_wrong: Tensor
    images: int
    """Images of this worker."""
    rows: int
    """Images of all workers."""
    offset: int
    """Rows of the epoch learned from, this batch included."""


def train_epoch(
    model: nn.Module,
    optimizer: MomentumSGD,
    reader: ShardLoader,
    setup: TrainContext,
    rates: EpochRates,
    *,
    epoch: int,
    offset: int = 0,
) -> Generator[Step, None, None]:
    """Learn from one epoch's batches from an offset on; one ``Step`` for each update.

    ``model`` is an ``AlexNet`` whose towers lie where ``setup.means`` do, or its wrapper that
    averages gradients over workers. ``optimizer`` has the epoch's rates already; they are set
    again here only if there is a warm-up.
    """
    model.train()
    for batch in reader.epoch(epoch, offset):
        draws = draw(
            setup.recipe,
            setup.axes,
            batch.rows,
            seed=setup.seed,
            epoch=epoch,
            offset=batch.offset,
            colour_noise=rates.colour_noise,
        ).take(batch.positions)
        patches = [
            training_crops(
                batch.images.to(mean.device, non_blocking=True),
                draws,
                mean,
                setup.recipe.training_scale if rates.colour_noise else 1.0,
            )
            for mean in setup.means
        ]
        if setup.warmup_rows:
            seen = epoch * reader.manifest.rows("train") + batch.offset + batch.rows
            set_rates(optimizer, apply_warmup(rates, seen, setup.warmup_rows))
        _seed_dropout(setup, epoch, batch.offset, reader.rank)
        yield train_step(model, optimizer, patches, batch, reader.world, bf16=setup.bf16)


def train_step(
    model: nn.Module,
    optimizer: MomentumSGD,
    patches: Sequence[Tensor],
    batch: Batch,
    world: int,
    *,
    bf16: bool = False,
) -> Step:
    """One update from the mean loss over the global batch.

    Workers' gradients are averaged with equal weight, so each scales its sum of losses by
    ``world / rows``: the average is then the mean over the global batch, also when the last
    batch of an epoch gives workers unequal or empty shares.
    """
    with torch.autocast(patches[0].device.type, torch.bfloat16, enabled=bf16):
        logits = model(*patches).float()
    labels = batch.labels.to(logits.device, non_blocking=True)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    optimizer.zero_grad()
    (loss * (world / batch.rows)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top1_wrong = (~hits[:, :1].any(dim=1)).sum()
        top5_wrong = (~hits.any(dim=1)).sum()
    return Step(
        loss.detach(), top1_wrong, top5_wrong, len(labels), batch.rows, batch.offset + batch.rows
    )


def total(steps: Sequence[Step]) -> Errors:
    """This worker's sums over some steps; waits for the device."""
    return Errors(
        images=sum(step.images for step in steps),
        loss=sum(float(step.loss) for step in steps),
        top1_wrong=sum(int(step.top1_wrong) for step in steps),
        top5_wrong=sum(int(step.top5_wrong) for step in steps),
    )


@torch.no_grad()
def validate(
    model: nn.Module, manifest: Manifest, setup: TrainContext, *, rank: int = 0, world: int = 1
) -> Errors:
    """Errors of the centre view on this worker's row groups of the validation split."""
    model.eval()
    errors = Errors()
    with ThreadPoolExecutor(2, "decode") as decoders:
        for group in manifest.row_groups("val")[rank::world]:
            table = read_row_group(group, ["image", "label"])
            stored = [image.as_buffer() for image in table["image"]]
            patches = ten_crop(torch.from_numpy(decode_images(stored, decoders)))[CENTRE_VIEW]
            inputs = [
                patches.to(mean.device).permute(0, 3, 1, 2).float() - mean for mean in setup.means
            ]
            with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=setup.bf16):
                logits = model(*inputs).float()
            probabilities = logits.softmax(dim=1)
            errors.count(probabilities.cpu().numpy(), table["label"].to_numpy().astype(np.int64))
    return errors


def _seed_dropout(setup: TrainContext, epoch: int, offset: int, rank: int) -> None:
    """Give this step's dropout masks a stream of their own on every device.

    ``torch.manual_seed`` gives all devices the same seed, with which both towers would drop the
    same units, so each GPU after the first gets another one.
    """
    sequence = np.random.SeedSequence([setup.seed, epoch, offset, rank])
    seeds = sequence.generate_state(len(setup.means), np.uint64).tolist()
    torch.manual_seed(seeds[0])
    for mean, seed in list(zip(setup.means, seeds, strict=True))[1:]:
        torch.cuda.default_generators[mean.device.index].manual_seed(seed)
