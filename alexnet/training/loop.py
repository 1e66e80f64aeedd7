"""One step and one epoch of training.

No operation of a step waits for a device: ``StepSums`` adds the results up on the device, and they
are read later. So the CPU launches a step while a GPU computes the one before it, and the copy and
the augmentation of its images are then done on a second stream, beside that computation.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.metrics import TOP_K, LossAndErrors
from alexnet.model.dropout import dropout_keys
from alexnet.recipes import Recipe
from alexnet.shards.buffers import BufferPool
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.training.augment import training_crops
from alexnet.training.crops import Augmentation, crop_buffers, crops_while_decoding
from alexnet.training.device_queue import HostCopy, SideStream, copy_to_device
from alexnet.training.exact import ExactWorker, compute_gradients
from alexnet.training.optimizer import EpochRates, MomentumSGD, apply_warmup, set_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainContext:
    """Values that are constant during a run."""

    recipe: Recipe
    means: Sequence[Tensor]
    """The mean image's central crop, (3, 224, 224) float32, on each device that holds a tower."""
    side_streams: Sequence[SideStream]
    """For each of ``means``: where its device's inputs are prepared."""
    pca_axes: NDArray[np.float64]
    """(3, 3): axes of the colour noise, from ``augment.pca_axes``."""
    seed: int
    bf16: bool = False
    """Matrix products and convolutions in bfloat16, under ``torch.autocast``."""
    channels_last: bool = True
    """Memory layout of the network's input on GPUs, and so of its activations."""
    warmup_rows: int = 0
    """The learning rate rises over this many rows (``optimizer.apply_warmup``)."""
    exact: ExactWorker | None = None
    """If the results must not depend on the number of workers."""
    crop_buffers: BufferPool[np.float32] = field(default_factory=crop_buffers)
    """The memory of crops that are made on CPUs."""

    def augmentation(self, epoch: int, *, colour_noise: bool) -> Augmentation:
        """How an epoch's images are cropped."""
        return Augmentation(
            recipe=self.recipe,
            pca_axes=self.pca_axes,
            seed=self.seed,
            epoch=epoch,
            colour_noise=colour_noise,
        )

    def prepare(self, work: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The network's inputs: the result of ``work`` for each mean, on the side stream."""
        pairs = zip(self.side_streams, self.means, strict=True)
        return [stream.run(partial(work, mean)) for stream, mean in pairs]


class Step(NamedTuple):
    """This worker's results of one update."""

    loss: Tensor
    """Sum of cross-entropies, on the first device."""
    top1_wrong: Tensor
    top5_wrong: Tensor
    images: int
    """Images of this worker."""
    rows: int
    """Images of all workers."""
    offset: int
    """Rows of the epoch trained on, including this batch."""


def train_epoch(
    model: nn.Module,
    optimizer: MomentumSGD,
    loader: ShardLoader,
    context: TrainContext,
    rates: EpochRates,
    *,
    epoch: int,
    offset: int = 0,
) -> Generator[Step, None, None]:
    """Train on one epoch's batches from an offset on. Yields one ``Step`` for each update.

    ``model`` is an ``AlexNet`` with its towers on the devices of ``context.means``, or the DDP
    wrapper of one. The caller has set the optimizer's rates to ``rates``; this function sets them
    again only during warm-up.
    """
    model.train()
    start_crops = None
    if all(mean.device.type == "cpu" for mean in context.means):
        augmentation = context.augmentation(epoch, colour_noise=rates.colour_noise)
        start_crops = crops_while_decoding(augmentation, context.means[0], context.crop_buffers)
    for batch in loader.epoch(epoch, offset, start_crops):
        if context.warmup_rows:
            seen = epoch * loader.manifest.rows("train") + batch.offset + batch.rows
            set_rates(optimizer, apply_warmup(rates, seen, context.warmup_rows))
        yield train_on_batch(
            model,
            optimizer,
            batch,
            context,
            epoch=epoch,
            colour_noise=rates.colour_noise,
            world_size=loader.world_size,
        )
        del batch  # Its memory is used again for the batch that the loader starts next.


def train_on_batch(
    model: nn.Module,
    optimizer: MomentumSGD,
    batch: Batch,
    context: TrainContext,
    *,
    epoch: int,
    colour_noise: bool = True,
    world_size: int = 1,
) -> Step:
    """Everything that a step does with a batch: copies, augmentation, the update.

    The batch has whole images, or on a CPU crops that the loader made with the same parameters.
    ``model`` as for ``train_epoch``. The optimizer's rates are set.
    """
    augmentation = context.augmentation(epoch, colour_noise=colour_noise)

    def crops_on(mean: Tensor) -> Tensor:
        if batch.images.is_floating_point():
            return batch.images
        images = copy_to_device(batch.images, mean.device)
        return training_crops(
            images,
            augmentation.params(batch),
            mean,
            augmentation.scale,
            channels_last=context.channels_last,
        )

    crops = context.prepare(crops_on)
    first_device = context.means[0].device
    labels = context.side_streams[0].run(partial(copy_to_device, batch.labels, first_device))
    on_device = batch._replace(labels=labels)
    rows = torch.from_numpy(batch.offset + batch.positions)
    rows_keys = dropout_keys(context.seed, epoch, rows)
    keys = context.prepare(lambda mean: copy_to_device(rows_keys, mean.device))
    bf16 = context.bf16
    if context.exact:
        return exact_step(model, optimizer, crops, on_device, keys, context.exact, bf16=bf16)
    return train_step(model, optimizer, crops, on_device, world_size, keys=keys, bf16=bf16)


def train_step(
    model: nn.Module,
    optimizer: MomentumSGD,
    crops: Sequence[Tensor],
    batch: Batch,
    world_size: int,
    *,
    keys: Sequence[Tensor] = (),
    bf16: bool = False,
) -> Step:
    """One update from the mean loss over the global batch.

    The batch's labels are on the first of the crops' devices. ``keys`` are those of dropout, on
    each of these devices.

    DDP averages the workers' gradients with equal weights. So each worker scales its sum of losses
    by ``world_size / rows``. The average is then the mean over the global batch, also when workers
    have different numbers of images, or none, in the last batch of an epoch.
    """
    with torch.autocast(crops[0].device.type, torch.bfloat16, enabled=bf16):
        logits = model(*crops, keys=keys).float()
    loss = F.cross_entropy(logits, batch.labels, reduction="sum")
    optimizer.zero_grad()
    (loss * (world_size / batch.rows)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return _results(loss, logits, batch)


def exact_step(
    network: nn.Module,
    optimizer: MomentumSGD,
    crops: Sequence[Tensor],
    batch: Batch,
    keys: Sequence[Tensor],
    worker: ExactWorker,
    *,
    bf16: bool = False,
) -> Step:
    """``train_step`` with sums in a fixed order; ``network`` is not wrapped, and on the CPU."""
    loss, logits = compute_gradients(
        network, crops[0], batch.labels, keys[0], batch.rows, worker, bf16=bf16
    )
    optimizer.step()
    return _results(loss, logits, batch)


@torch.no_grad()
def _results(loss: Tensor, logits: Tensor, batch: Batch) -> Step:
    correct = logits.topk(min(TOP_K, logits.shape[1])).indices == batch.labels[:, None]
    top1_wrong = (~correct[:, :1].any(dim=1)).sum()
    top5_wrong = (~correct.any(dim=1)).sum()
    return Step(
        loss.detach(),
        top1_wrong,
        top5_wrong,
        len(batch.labels),
        batch.rows,
        batch.offset + batch.rows,
    )


class StepSums:
    """This worker's sums over some steps, on the device until they are read."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        """Of this worker."""
        self.rows = 0
        """Images of all workers."""
        self._sums: Tensor | None = None
        self._copy: HostCopy | None = None

    def add(self, step: Step) -> None:
        """Add a step, without waiting for its results."""
        assert self._copy is None
        values = torch.stack([step.loss.double(), step.top1_wrong, step.top5_wrong])
        self._sums = values if self._sums is None else self._sums + values
        self.steps += 1
        self.images += step.images
        self.rows += step.rows

    def start_copy(self) -> None:
        """Start to copy the sums to the CPU; no step may be added after that."""
        assert self._sums is not None
        self._copy = HostCopy(self._sums)

    def read(self) -> LossAndErrors:
        """The sums; waits for the device until they are copied."""
        if self._copy is None:
            self.start_copy()
        assert self._copy is not None
        loss, top1_wrong, top5_wrong = self._copy.read().tolist()
        return LossAndErrors(
            images=self.images, loss=loss, top1_wrong=int(top1_wrong), top5_wrong=int(top5_wrong)
        )
