"""Local response normalization: x / (bias + alpha · Σ x²) ^ .75, across maps or within a map.

Both kinds are one function with two kinds of window. A window sum W is symmetric (i is in the
window of j if and only if j is in the window of i), so the backward pass needs the same sum:

    y  = x · q            with q = d ^ -.75 and d = bias + alpha · W(x²)
    dx = g · q - 1.5 · alpha · x · W(g · x · q / d)

The backward pass keeps only x and recomputes d: this takes less time than storing and loading it.
On CPUs the compiled loops of ``alexnet.kernels.lrn`` read and write main memory once; on GPUs the
kernels of ``alexnet.kernels.lrn_triton`` do. On other devices, and where Triton is not installed,
torch operations compute a window sum by adding shifted views of the padded tensor. For torch all
are one operator, ``alexnet::normalize``, with one implementation for each device type.

Sums are in float32 at least. On GPUs the operator itself sees to that, so that bfloat16 goes in and
out; elsewhere the caller passes float32.

The paper's section 3.3 writes alpha = 1e-4 as a factor of the plain sum. The 2012 source and
``torch.nn.LocalResponseNorm`` divide alpha by the window size.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet.kernels.jit import parallel_over_batch
from alexnet.recipes import Normalization


class CrossMapNorm(nn.Module):
    """Normalization over neighbouring maps at the same position.

    Takes and returns (N, C, H, W). The window is truncated at the first and the last map.
    """

    def __init__(self, norm: Normalization) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return _normalize(x, False, self.norm)


class WithinMapNorm(nn.Module):
    """Normalization over a square of positions within each map, truncated at the borders.

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
    # On CPUs the compiler generates its own loops and derivative; GPUs have kernels for both. An
    # exported network must not depend on this project's operator.
    if torch.compiler.is_exporting() or (torch.compiler.is_compiling() and not x.is_cuda):
        return _normalize_decomposed(x, *settings)
    result: Tensor = _forward(x, *settings)
    return result


def takes_bfloat16(norm: nn.Module, x: Tensor) -> bool:
    """Whether ``norm`` computes in float32 by itself, also if x on this device is not float32."""
    return x.is_cuda and isinstance(norm, CrossMapNorm | WithinMapNorm | nn.Identity)


def _normalize_decomposed(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """The same operations as the CPU loops, one by one: an exported network returns equal bits."""
    d = _window_sums(x.square(), within, size) * alpha + bias
    # ``rsqrt`` is rounded as IEEE 754 requires. Torch's ``sqrt`` is not.
    root = d.rsqrt()
    return x * (root * (d * root).rsqrt())


def normalize_with_torch(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """The forward pass in torch operations, for devices without a kernel of their own.

    Args:
        x: (N, C, H, W).
        within: whether the window is a square within a map; else it is a range of maps.
        size: width of the window.
        bias: constant in the denominator.
        alpha: weight of each square.
    """
    root = _inverse_root(x, within, size, bias, alpha)
    return root.sqrt().mul_(root).mul_(x)


def normalize_backward_with_torch(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    """The backward pass in torch operations: the gradient of x from the gradient of the output."""
    root = _inverse_root(x, within, size, bias, alpha)
    direct = root.sqrt().mul_(root).mul_(grad)
    window_sums = _window_sums(root.square_().mul_(direct).mul_(x), within, size)
    return direct.addcmul_(window_sums, x, value=-1.5 * alpha)


_forward = torch.library.custom_op("alexnet::normalize", normalize_with_torch, mutates_args=())
_backward = torch.library.custom_op(
    "alexnet::normalize_backward", normalize_backward_with_torch, mutates_args=()
)


@_forward.register_kernel("cpu")
def _forward_on_cpu(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    # Imported here, because it imports the compiler, which GPUs don't need.
    from alexnet.kernels.lrn import forward

    x_last = _channels_last(x)
    result = torch.empty_like(x_last)
    arrays = [x_last.numpy(), result.numpy()]
    scalar = arrays[0].dtype.type
    parallel_over_batch(forward, arrays, within, size, scalar(bias), scalar(alpha))
    return _channels_second(result, like=x)


@_backward.register_kernel("cpu")
def _backward_on_cpu(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    from alexnet.kernels.lrn import backward

    x_last, grad_last = _channels_last(x), _channels_last(grad)
    result = torch.empty_like(x_last)
    arrays = [x_last.numpy(), grad_last.numpy(), result.numpy()]
    scalar = arrays[0].dtype.type
    settings = within, size, scalar(bias), scalar(alpha), scalar(1.5 * alpha)
    parallel_over_batch(backward, arrays, *settings)
    return _channels_second(result, like=x)


@_forward.register_kernel("cuda")
def _forward_on_gpu(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    if kernels := _gpu_kernels():
        result: Tensor = kernels.normalize(x, within, size, bias, alpha)
        return result
    return normalize_with_torch(_at_least_float32(x), within, size, bias, alpha).to(x.dtype)


@_backward.register_kernel("cuda")
def _backward_on_gpu(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    if kernels := _gpu_kernels():
        result: Tensor = kernels.normalize_backward(grad, x, within, size, bias, alpha)
        return result
    grad, x_float = _at_least_float32(grad), _at_least_float32(x)
    return normalize_backward_with_torch(grad, x_float, within, size, bias, alpha).to(x.dtype)


def _gpu_kernels() -> ModuleType | None:
    """The kernels in Triton; None where it is not installed."""
    try:
        from alexnet.kernels import lrn_triton
    except ImportError:
        return None
    return lrn_triton


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@_forward.register_fake
def _fake_forward(x: Tensor, *_: Any) -> Tensor:
    return _channels_second(torch.empty_like(_channels_last(x)), like=x)


@_backward.register_fake
def _fake_backward(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _channels_second(torch.empty_like(_channels_last(x)), like=x)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *ctx.settings = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    (x,) = ctx.saved_tensors
    return _backward(grad, x, *ctx.settings), None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def _window_sums(terms: Tensor, within: bool, size: int) -> Tensor:
    """Sums over windows of ``size`` maps, or rows and columns; truncated at the borders."""
    axes = (3, 2) if within else (1,)
    # Axes by their stride in memory, largest first: for (N, C, H, W) or for channels last.
    order = (0, 1, 2, 3) if terms.is_contiguous() else (0, 2, 3, 1)
    border = [size // 2 if axis in axes else 0 for axis in order]
    padding = [side for width in reversed(border) for side in (width, width)]
    padded = F.pad(terms.permute(order), padding).contiguous()
    strides = dict(zip(order, padded.stride(), strict=True))
    flat = padded.flatten()
    for axis in axes:
        flat = _sliding_sums(flat, size, strides[axis])
    return flat.as_strided(terms.shape, [strides[axis] for axis in range(4)])


def _sliding_sums(flat: Tensor, size: int, stride: int) -> Tensor:
    """Element i of the result is the sum of ``size`` elements, from i on, ``stride`` apart.

    In a padded and flattened tensor these are the windows along one axis. Windows that extend over
    the end of a row, a map or an image are at positions of the padding, which are not read.
    """
    count = flat.shape[0] - (size - 1) * stride
    pairs = flat[: flat.shape[0] - stride] + flat[stride:]
    sums = pairs[:count] + flat[2 * stride : 2 * stride + count]
    for step in range(3, size, 2):
        sums = sums + pairs[step * stride : step * stride + count]
    return sums


def _inverse_root(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """d ^ -.5. The required d ^ -.75 is this times its square root, which is cheap."""
    sums = _window_sums(x.square(), within, size)
    # bias + alpha · sums in one pass. A constant tensor would bind an exported graph to a device.
    return torch.rsub(sums, bias, alpha=-alpha).rsqrt()


def _channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H, W, C), contiguous; a copy only if memory has another order."""
    return x.permute(0, 2, 3, 1).contiguous()


def _channels_second(result: Tensor, *, like: Tensor) -> Tensor:
    """(N, H, W, C) → (N, C, H, W), with the memory format of ``like``."""
    permuted = result.permute(0, 3, 1, 2)
    is_channels_last = like.is_contiguous(memory_format=torch.channels_last)
    return permuted if is_channels_last else permuted.contiguous()
