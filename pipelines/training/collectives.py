"""Small values reduced over all workers of a training, on the CPU, in the default process group."""

from dataclasses import replace

import torch
import torch.distributed as dist

from alexnet.metrics import LossAndErrors


def all_reduce_errors(local: LossAndErrors, *others: float) -> tuple[LossAndErrors, list[float]]:
    """The counts of all workers together, and the sums of other values."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return replace(local), list(others)
    values = [float(local.images), local.loss, float(local.top1_wrong), float(local.top5_wrong)]
    tensor = torch.tensor([*values, *others], dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.SUM)
    images, loss, top1_wrong, top5_wrong, *sums = tensor.tolist()
    errors = LossAndErrors(
        images=int(images), loss=loss, top1_wrong=int(top1_wrong), top5_wrong=int(top5_wrong)
    )
    return errors, sums
