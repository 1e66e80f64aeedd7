"""Local response normalization: x / (bias + alpha · Σ x²) ^ .75, over maps or within a map.

Both forms are one function with two windows. A window sum is symmetric (i is in j's window if
and only if j is in i's), so the derivative needs no other sum than the forward pass does:

    y  = x · q            with q = d ^ -.75 and d = bias + alpha · W(x²)
    dx = g · q - 1.5 · alpha · x · W(g · x · q / d)

The backward pass keeps only x and computes d again, which costs less than the memory traffic of
saving it. On a CPU the batch is worked off in blocks of so few images that all the passes over a
block find it in the cache; main memory is read once and written once. A window sum is a few sums
of a padded block and itself, shifted.

The paper's section 3.3 gives the cross-map form with alpha = 1e-4 on the plain sum;
``torch.nn.LocalResponseNorm`` and the 2012 source divide alpha by the window's size.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.recipes import Normalization

Axes = tuple[int, ...]
MAPS: Axes = (1,)
POSITIONS: Axes = (2, 3)

BLOCK = 300_000
"""Elements of a block: of the sizes measured on CPUs with 1 MB of cache a core, the fastest."""


class CrossMapNorm(nn.Module):
    """Normalization over neighbouring maps at the same position.

    Takes and returns (N, C, H, W); the window is cut off at the first and last map.
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return _normalize(x, MAPS, self.norm)


class WithinMapNorm(nn.Module):
    """Normalization over a square of positions within each map, cut off at the borders.

    Takes and returns (N, C, H, W).
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return _normalize(x, POSITIONS, self.norm)


def _window_sums(terms: Tensor, axes: Axes, size: int) -> Tensor:
    """Of each window of ``size`` along each of ``axes``; cut off at the borders."""
    # Innermost in memory are the columns, or the maps if the layout is channels-last.
    order = (0, 1, 2, 3) if terms.is_contiguous() else (0, 2, 3, 1)
    border = [size // 2 if axis in axes else 0 for axis in order]
    padding = [side for width in reversed(border) for side in (width, width)]
    padded = F.pad(terms.permute(order), padding).contiguous()
    strides = dict(zip(order, padded.stride(), strict=True))
    line = padded.flatten()
    for axis in axes:
        line = _neighbours(line, size, strides[axis])
    return line.as_strided(terms.shape, [strides[axis] for axis in range(4)])


def _neighbours(line: Tensor, count: int, stride: int) -> Tensor:
    """Element i of the result is the sum of ``count`` elements, from i on, ``stride`` apart.

    Of a tensor that was padded and laid out in a line, these are the windows along one axis. What
    lies across the end of a row, a map or an image falls to elements that nobody reads.
    """
    if count == 1:
        return line
    half = count // 2
    sums = _neighbours(line, half, stride)
    sums = sums[: sums.shape[0] - half * stride] + sums[half * stride :]
    if count % 2:
        sums = sums[: sums.shape[0] - stride] + line[(count - 1) * stride :]
    return sums


def _normalize(x: Tensor, axes: Axes, norm: Normalization) -> Tensor:
    if torch.compiler.is_compiling():  # The compiler finds blocks and derivative by itself.
        root = _root(x, axes, norm)
        return root.sqrt() * root * x
    return _Normalize.apply(x, axes, norm)  # type: ignore[no-any-return]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: Axes, norm: Normalization) -> Tensor:
        ctx.save_for_backward(x)
        ctx.settings = axes, norm
        result = torch.empty_like(x)
        for inputs, out in _blocks(x, result):
            root = _root(inputs, axes, norm)
            torch.mul(root.sqrt().mul_(root), inputs, out=out)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        axes, norm = ctx.settings
        result = torch.empty_like(x)
        for inputs, grads, out in _blocks(x, grad, result):
            root = _root(inputs, axes, norm)
            direct = root.sqrt().mul_(root).mul_(grads)
            through = _window_sums(root.square_().mul_(direct).mul_(inputs), axes, norm.size)
            torch.addcmul(direct, through, inputs, value=-1.5 * norm.alpha, out=out)
        return result, None, None


def _root(x: Tensor, axes: Axes, norm: Normalization) -> Tensor:
    """d ^ -.5; the power that is wanted is its square root times itself, and cheap."""
    sums = _window_sums(x.square(), axes, norm.size)
    # bias + alpha · sums in one pass, without a tensor that would tie a graph to a device.
    return torch.rsub(sums, norm.bias, alpha=-norm.alpha).rsqrt()


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of some images at a time; of all at once where there is no cache to think of."""
    count = len(tensors[0])
    blocks = count and tensors[0].device.type == "cpu"
    size = max(1, BLOCK // tensors[0][0].numel()) if blocks else max(1, count)
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
