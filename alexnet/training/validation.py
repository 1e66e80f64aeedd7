"""The validation with the centre view, between the epochs of a training."""

from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexnet.metrics import LossAndErrors
from alexnet.shards.loader import ShardLoader
from alexnet.shards.order import MICROBATCHES
from alexnet.shards.validation import validation_batches
from alexnet.training.augment import centre_crops
from alexnet.training.device_queue import HostCopy, copy_to_device
from alexnet.training.exact import exact_loss
from alexnet.training.loop import TrainContext


def validate(model: nn.Module, loader: ShardLoader, context: TrainContext) -> LossAndErrors:
    """Errors of the centre view on this worker's row groups of the validation split.

    The probabilities of a row group are counted while the device computes the next one.
    """
    model.eval()
    errors = LossAndErrors()
    exact = context.exact
    uncounted: deque[tuple[Callable[[], Tensor], NDArray[np.int64]]] = deque()

    @torch.no_grad()
    def compute(images: Tensor) -> HostCopy:
        inputs = context.prepare(partial(_centre_view, images, context))
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=context.bf16):
            logits = model(*inputs).float()
        return HostCopy(logits.softmax(dim=1))

    def compute_and_read(images: Tensor) -> Tensor:
        return compute(images).read()

    def count() -> None:
        probabilities, labels = uncounted.popleft()
        counted = LossAndErrors()
        counted.count(probabilities().numpy(), labels)
        if exact:
            counted.loss = exact_loss(counted.loss)
        errors.add(counted)

    probabilities: Callable[[], Tensor]
    for batch in validation_batches(loader):
        if exact:
            probabilities = exact.pool.submit(compute_and_read, batch.images).result
        else:
            probabilities = compute(batch.images).read
        uncounted.append((probabilities, batch.labels))
        if len(uncounted) > (MICROBATCHES if exact else 1):
            count()
    while uncounted:
        count()
    return errors


def _centre_view(images: Tensor, context: TrainContext, mean: Tensor) -> Tensor:
    images = copy_to_device(images, mean.device)
    return centre_crops(images, mean, channels_last=context.channels_last)
