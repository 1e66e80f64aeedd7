"""The update rule of ``alexnet.training.optimizer`` on GPUs, in one pass over memory.

Torch operations need eleven passes over tensors of a parameter's size, this kernel five: w, v and g
are read once, w and v are written once. It is written in Triton, which torch's packages for CUDA
contain. Importing this module raises ImportError where Triton is not installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Elements of one program."""


# Triton evaluates annotations, and knows no other than its own.
def _update(  # type: ignore[no-untyped-def]
    weight, velocity, gradient, count, momentum, decay, rate, block: tl.constexpr
):
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < count
    w = tl.load(weight + index, mask=inside)
    v = tl.load(velocity + index, mask=inside)
    g = tl.load(gradient + index, mask=inside)
    v = v * momentum - decay * w - rate * g
    tl.store(velocity + index, v, mask=inside)
    tl.store(weight + index, w + v, mask=inside)


update_kernel = triton.jit(_update)


def update_in_one_pass(
    weight: Tensor,
    velocity: Tensor,
    gradient: Tensor,
    *,
    momentum: float,
    decay: float,
    rate: float,
) -> None:
    """v ← momentum · v - decay · w - rate · g, then w ← w + v, in place.

    Args:
        weight: w, float32, any shape, without gaps in memory.
        velocity: v, with the type, shape, strides and device of w.
        gradient: g, with the same.
        momentum: factor of v.
        decay: factor of w; it contains the learning rate.
        rate: the learning rate.
    """
    assert weight.dtype == torch.float32
    assert weight.stride() == velocity.stride() == gradient.stride()
    programs = triton.cdiv(weight.numel(), BLOCK)
    # Triton launches on the current device.
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
        update_kernel[(programs,)](
            weight, velocity, gradient, weight.numel(), momentum, decay, rate, block=BLOCK
        )
