"""How convolutions and matrix products multiply.

``float32``: as in 2012. ``tf32``: GPUs round the factors to 11 significant bits; no effect on CPUs.
``bf16``: the factors and products are in bfloat16, of 8 significant bits; sums are in float32.
"""

from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]


def set_tf32(precision: Precision) -> None:
    """Allow TF32 in this process only for ``tf32``: torch allows it for convolutions by default."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
