"""Local response normalization: x / (bias + alpha · Σ x²) ^ .75, over maps or within a map.

Both forms are one function with two windows. A window sum is symmetric (i is in j's window if
and only if j is in i's), so the derivative needs no other sum than the forward pass does:

    y  = x · q            with q = d ^ -.75 and d = bias + alpha · W(x²)
    dx = g · q - 1.5 · alpha · x · W(g · x · q / d)

The backward pass keeps only x and computes d again: recomputing costs less than the memory
traffic of saving. The window over maps is a product with a banded matrix (a 1x1 convolution),
which takes one pass over the tensor where five shifted slices take five.

The paper's section 3.3 gives the cross-map form with alpha = 1e-4 on the plain sum;
``torch.nn.LocalResponseNorm`` and the 2012 source divide alpha by the window's size.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.recipes import Normalization

WindowSum = Callable[[Tensor], Tensor]


class CrossMapNorm(nn.Module):
    """Normalization over neighbouring maps at the same position.

    Takes and returns (N, ``maps``, H, W); the window is cut off at the first and last map.
    """

    band: Tensor

    def __init__(self, maps: int, norm: Normalization) -> None:
        super().__init__()
        index = torch.arange(maps)
        near = (index[:, None] - index[None, :]).abs() <= norm.size // 2
        self.register_buffer("band", near.float()[:, :, None, None], persistent=False)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, maps, H, W)."""
        return _normalize(x, lambda squares: F.conv2d(squares, self.band), self.norm)


class WithinMapNorm(nn.Module):
    """Normalization over a square of positions within each map, cut off at the borders.

    Takes and returns (N, C, H, W).
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        size = self.norm.size
        return _normalize(
            x,
            lambda squares: F.avg_pool2d(squares, size, 1, size // 2, divisor_override=1),
            self.norm,
        )


def _normalize(x: Tensor, window: WindowSum, norm: Normalization) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Normalize.apply(x, window, norm.alpha, norm.bias)  # type: ignore[no-any-return]
    return _power(_denominator(x, window, norm.alpha, norm.bias)).mul_(x)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: WindowSum, alpha: float, bias: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = window, alpha, bias
        return _power(_denominator(x, window, alpha, bias)).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        window, alpha, bias = ctx.settings
        d = _denominator(x, window, alpha, bias)
        direct = _power(d).mul_(grad)
        through = window(d.reciprocal_().mul_(direct).mul_(x))
        return direct.sub_(through.mul_(x), alpha=1.5 * alpha), None, None, None


def _denominator(x: Tensor, window: WindowSum, alpha: float, bias: float) -> Tensor:
    return window(x.square()).mul_(alpha).add_(bias)


def _power(d: Tensor) -> Tensor:
    """d ^ -.75 from two reciprocal roots, which are much cheaper than a general power."""
    root = d.rsqrt()
    return root.sqrt().mul_(root)
