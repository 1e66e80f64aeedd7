"""Local response normalization: x / (bias + alpha · Σ x²) ^ .75, over maps or within a map.

Both forms are one function with two windows. A window sum is symmetric (i is in j's window if
and only if j is in i's), so the derivative needs no other sum than the forward pass does:

    y  = x · q            with q = d ^ -.75 and d = bias + alpha · W(x²)
    dx = g · q - 1.5 · alpha · x · W(g · x · q / d)

The backward pass keeps only x and computes d again, which costs less than the memory traffic of
saving it. On a CPU the loops of ``norm_loops`` read main memory once and write it once. Elsewhere
a window sum is a few sums of the padded tensor and itself, shifted. Both are one operation to
torch, ``alexnet::normalize``, of which it chooses the form by where the data lies.

The paper's section 3.3 gives the cross-map form with alpha = 1e-4 on the plain sum;
``torch.nn.LocalResponseNorm`` and the 2012 source divide alpha by the window's size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels.jit import parallel_over_batch
from alexnet.recipes import Normalization


class CrossMapNorm(nn.Module):
    """Normalization over neighbouring maps at the same position.

    Takes and returns (N, C, H, W); the window is cut off at the first and last map.
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return _normalize(x, False, self.norm)


class WithinMapNorm(nn.Module):
    """Normalization over a square of positions within each map, cut off at the borders.

    Takes and returns (N, C, H, W).
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return _normalize(x, True, self.norm)


def _normalize(x: Tensor, within: bool, norm: Normalization) -> Tensor:
    settings = within, norm.size, norm.bias, norm.alpha
    if torch.compiler.is_compiling():  # The compiler finds the loops and the derivative itself.
        return _as_in_the_loops(x, *settings)
    result: Tensor = _forward(x, *settings)
    return result


def _as_in_the_loops(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """The operations of ``norm_loops`` one by one: an exported network gives the same bits."""
    d = _window_sums(x.square(), within, size) * alpha + bias
    root = d.rsqrt()  # Rounded as IEEE 754 asks for, which torch's ``sqrt`` is not.
    return x * (root * (d * root).rsqrt())


def _normalized(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    root = _root(x, within, size, bias, alpha)
    return root.sqrt().mul_(root).mul_(x)


def _derivative(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    root = _root(x, within, size, bias, alpha)
    direct = root.sqrt().mul_(root).mul_(grad)
    through = _window_sums(root.square_().mul_(direct).mul_(x), within, size)
    return direct.addcmul_(through, x, value=-1.5 * alpha)


_forward = torch.library.custom_op("alexnet::normalize", _normalized, mutates_args=())
_backward = torch.library.custom_op("alexnet::normalize_backward", _derivative, mutates_args=())


@_forward.register_kernel("cpu")
def _forward_on_cpu(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    from alexnet.kernels.lrn import forward  # Loads a compiler, which GPUs don't need.

    given = _maps_last(x)
    result = torch.empty_like(given)
    arrays = [given.numpy(), result.numpy()]
    real = arrays[0].dtype.type
    parallel_over_batch(forward, arrays, within, size, real(bias), real(alpha))
    return _laid_out_like(x, result)


@_backward.register_kernel("cpu")
def _backward_on_cpu(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    from alexnet.kernels.lrn import backward

    given, upstream = _maps_last(x), _maps_last(grad)
    result = torch.empty_like(given)
    arrays = [given.numpy(), upstream.numpy(), result.numpy()]
    real = arrays[0].dtype.type
    settings = within, size, real(bias), real(alpha), real(1.5 * alpha)
    parallel_over_batch(backward, arrays, *settings)
    return _laid_out_like(x, result)


@_forward.register_fake
def _shape_forward(x: Tensor, *_: Any) -> Tensor:
    return _laid_out_like(x, torch.empty_like(_maps_last(x)))


@_backward.register_fake
def _shape_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _laid_out_like(x, torch.empty_like(_maps_last(x)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.settings = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    (x,) = ctx.saved_tensors
    return _backward(grad, x, *ctx.settings), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _window_sums(terms: Tensor, within: bool, size: int) -> Tensor:
    """Of each window of ``size`` maps, or rows and columns; cut off at the borders."""
    axes = (3, 2) if within else (1,)
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


def _neighbours(line: Tensor, size: int, stride: int) -> Tensor:
    """Element i of the result is the sum of ``size`` elements, from i on, ``stride`` apart.

    Of a tensor that was padded and laid out in a line, these are the windows along one axis. What
    lies across the end of a row, a map or an image falls to elements that nobody reads.
    """
    count = line.shape[0] - (size - 1) * stride
    pairs = line[: line.shape[0] - stride] + line[stride:]
    sums = pairs[:count] + line[2 * stride : 2 * stride + count]
    for step in range(3, size, 2):
        sums = sums + pairs[step * stride : step * stride + count]
    return sums


def _root(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """d ^ -.5; the power that is wanted is its square root times itself, and cheap."""
    sums = _window_sums(x.square(), within, size)
    # bias + alpha · sums in one pass, without a tensor that would tie a graph to a device.
    return torch.rsub(sums, bias, alpha=-alpha).rsqrt()


def _maps_last(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), contiguous; a copy unless it lies like this in memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def _laid_out_like(x: Tensor, result: Tensor) -> Tensor:
    """(N, H, W, C) → (N, C, H, W), in memory as ``x``."""
    maps_second = result.permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last)
    return maps_second if last else maps_second.contiguous()
