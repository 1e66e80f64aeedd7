"""The masks of ``alexnet.model.dropout`` on GPUs, in one kernel, with Triton's Philox 4x32-10.

Importing this module raises ImportError where Triton is not installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Numbers of one program: units of one image divided by 4."""


# Triton evaluates annotations, and knows no other than its own.
def _fill(keys, mask, units, layer, first, threshold, block: tl.constexpr):  # type: ignore[no-untyped-def]
    image = tl.program_id(0).to(tl.int64)
    quarter = tl.program_id(1) * block + tl.arange(0, block)
    zero = quarter * 0
    seed, epoch, row = (
        tl.load(keys + 3 * image),
        tl.load(keys + 3 * image + 1),
        tl.load(keys + 3 * image + 2),
    )
    numbers = tl.philox(
        seed, quarter + first // 4, zero + row.to(tl.int32), zero + epoch.to(tl.int32), zero + layer
    )
    limit = threshold.to(tl.int64)
    for i in tl.static_range(4):
        unit = 4 * quarter + i
        number = numbers[i].to(tl.uint32, bitcast=True).to(tl.int64)
        tl.store(mask + image * units + unit, number >= limit, mask=unit < units)


fill_kernel = triton.jit(_fill)


def fill_mask(keys: Tensor, mask: Tensor, layer: int, first: int, threshold: int) -> None:
    """As ``alexnet.kernels.dropout.fill_mask``, for tensors on a GPU."""
    if mask.numel() == 0:
        return
    count, units = mask.shape
    programs = count, triton.cdiv(triton.cdiv(units, 4), BLOCK)
    # Triton launches on the current device.
    with torch.cuda.device_of(mask):  # type: ignore[no-untyped-call]
        fill_kernel[programs](keys, mask, units, layer, first, threshold, block=BLOCK)
