"""Small values reduced over all workers of a training, on the CPU, in the default process group."""

from dataclasses import replace

import torch
import torch.distributed as dist

from alexnet.metrics import LossAndErrors


def all_reduce_errors(local: LossAndErrors) -> LossAndErrors:
    """The counts of all workers together."""
    if not _several_workers():
        return replace(local)
    values = [float(local.images), local.loss, float(local.top1_wrong), float(local.top5_wrong)]
    images, loss, top1_wrong, top5_wrong = _all_reduce(values, dist.ReduceOp.SUM)
    return LossAndErrors(
        images=int(images), loss=loss, top1_wrong=int(top1_wrong), top5_wrong=int(top5_wrong)
    )


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one worker."""
    if not _several_workers():
        return flag
    return _all_reduce([float(flag)], dist.ReduceOp.MAX) == [1.0]


def _several_workers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_reduce(values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, operation)
    return [float(value) for value in tensor]
