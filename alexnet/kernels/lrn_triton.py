"""The normalizations of ``alexnet.model.lrn`` on GPUs, without intermediate results in memory.

A program computes a block of neighbouring elements of one image. Windows overlap, so most of what
it reads is in the cache. For the window over maps, the forward pass reads x and writes y, and the
backward pass reads x and the gradient and writes the result. For the window within a map the
backward pass has two steps: the sum of 25 terms, each with 25 squares, would take 625 additions for
each element. So the first step writes the terms, and the second one adds them up.

Arithmetic is in float32, or in float64 for float64. Tensors may also be bfloat16 or float16. It is
written in Triton, which torch's packages for CUDA contain. Importing this module raises ImportError
where Triton is not installed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
"""Elements of one program."""


# Triton evaluates annotations, and knows no other than its own. ``axes`` is constant for a layer:
# lengths of the two axes over which a window extends, their strides, and the number of elements
# before a window's centre: rows and columns, or maps and one column. ``norm`` is the constant bias
# and alpha. ``number`` is the type of the arithmetic.
def _positions(size, axes: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program's elements: index within the image, whether it exists, row and column."""
    index = tl.program_id(1) * block + tl.arange(0, block)
    exists = index < size
    # No window that is needed for an element after the image's last one contains a row.
    row = tl.where(exists, (index // axes[2]) % axes[0], -1 - 2 * axes[4])
    return index, exists, row, (index // axes[3]) % axes[1]


positions = triton.jit(_positions)


def _factors(  # type: ignore[no-untyped-def]
    x, index, row, column, axes: tl.constexpr, norm: tl.constexpr, number: tl.constexpr
):
    """d ^ -.5 and d ^ -.75 at positions inside or outside the image."""
    sums = tl.full(index.shape, 0.0, number)
    for i in tl.static_range(2 * axes[4] + 1):
        for j in tl.static_range(2 * axes[5] + 1):
            r, c = row + (i - axes[4]), column + (j - axes[5])
            exists = (r >= 0) & (r < axes[0]) & (c >= 0) & (c < axes[1])
            shift = (i - axes[4]) * axes[2] + (j - axes[5]) * axes[3]
            value = tl.load(x + index + shift, mask=exists, other=0.0).to(number)
            sums += value * value
    root = tl.rsqrt(sums * norm[1] + norm[0])
    return root, root * tl.sqrt(root)


factors = triton.jit(_factors)


def _term(  # type: ignore[no-untyped-def]
    x,
    grad,
    index,
    exists,
    row,
    column,
    axes: tl.constexpr,
    norm: tl.constexpr,
    number: tl.constexpr,
):
    """g · x · q / d; 0 outside the image."""
    root, power = factors(x, index, row, column, axes, norm, number)
    g = tl.load(grad + index, mask=exists, other=0.0).to(number)
    return g * tl.load(x + index, mask=exists, other=0.0).to(number) * power * root * root


term = triton.jit(_term)


def _forward(  # type: ignore[no-untyped-def]
    x, y, size, axes: tl.constexpr, norm: tl.constexpr, number: tl.constexpr, block: tl.constexpr
):
    """y = x · q."""
    image = tl.program_id(0).to(tl.int64) * size
    x, y = x + image, y + image
    index, exists, row, column = positions(size, axes, block)
    _, power = factors(x, index, row, column, axes, norm, number)
    value = tl.load(x + index, mask=exists, other=0.0).to(number)
    tl.store(y + index, value * power, mask=exists)


forward_kernel = triton.jit(_forward)


def _terms(  # type: ignore[no-untyped-def]
    x,
    grad,
    terms,
    size,
    axes: tl.constexpr,
    norm: tl.constexpr,
    number: tl.constexpr,
    block: tl.constexpr,
):
    """The terms of the backward pass's window sums."""
    image = tl.program_id(0).to(tl.int64) * size
    x, grad, terms = x + image, grad + image, terms + image
    index, exists, row, column = positions(size, axes, block)
    value = term(x, grad, index, exists, row, column, axes, norm, number)
    tl.store(terms + index, value, mask=exists)


terms_kernel = triton.jit(_terms)


def _backward(  # type: ignore[no-untyped-def]
    x,
    grad,
    terms,
    result,
    size,
    axes: tl.constexpr,
    norm: tl.constexpr,
    number: tl.constexpr,
    block: tl.constexpr,
):
    """g · q - 1.5 · alpha · x · W(terms); they are computed here if ``terms`` is None."""
    image = tl.program_id(0).to(tl.int64) * size
    x, grad, result = x + image, grad + image, result + image
    index, exists, row, column = positions(size, axes, block)
    total = tl.full(index.shape, 0.0, number)
    for i in tl.static_range(2 * axes[4] + 1):
        for j in tl.static_range(2 * axes[5] + 1):
            r, c = row + (i - axes[4]), column + (j - axes[5])
            inside = (r >= 0) & (r < axes[0]) & (c >= 0) & (c < axes[1])
            at = index + ((i - axes[4]) * axes[2] + (j - axes[5]) * axes[3])
            if terms is None:
                total += term(x, grad, at, inside, r, c, axes, norm, number)
            else:
                total += tl.load(terms + image + at, mask=inside, other=0.0)
    _, power = factors(x, index, row, column, axes, norm, number)
    value = tl.load(x + index, mask=exists, other=0.0).to(number)
    g = tl.load(grad + index, mask=exists, other=0.0).to(number)
    tl.store(result + index, g * power - 1.5 * norm[1] * value * total, mask=exists)


backward_kernel = triton.jit(_backward)


def normalize(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """The forward pass.

    Args:
        x: (N, C, H, W), floating point.
        within: whether the window is a square within a map; else it is a range of maps.
        size: width of the window, odd.
        bias: constant in the denominator.
        alpha: weight of each square.

    Returns:
        (N, C, H, W) with the type and the memory format of x.
    """
    x = x.contiguous(memory_format=_memory_format(x))
    y = torch.empty_like(x)
    _launch(forward_kernel, x, y, within=within, size=size, norm=(bias, alpha))
    return y


def normalize_backward(
    grad: Tensor, x: Tensor, within: bool, size: int, bias: float, alpha: float
) -> Tensor:
    """The backward pass: the gradient of x from the gradient of the output, both (N, C, H, W)."""
    layout = _memory_format(x)
    x, grad = x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    window: dict[str, Any] = {"within": within, "size": size, "norm": (bias, alpha)}
    result, terms = torch.empty_like(x), None
    if within:
        terms = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        _launch(terms_kernel, x, grad, terms, **window)
    _launch(backward_kernel, x, grad, terms, result, **window)
    return result


def _launch(
    kernel: Any,
    x: Tensor,
    *tensors: Tensor | None,
    within: bool,
    size: int,
    norm: tuple[float, float],
) -> None:
    """Run a kernel on x and tensors of the same shape and memory format."""
    if x.numel() == 0:
        return
    count, maps, height, width = x.shape
    elements, before = maps * height * width, size // 2
    if within:
        axes = (height, width, x.stride(2), x.stride(3), before, before)
    else:
        axes = (maps, 1, x.stride(1), 1, before, 0)
    number = tl.float64 if x.dtype == torch.float64 else tl.float32
    programs = (count, triton.cdiv(elements, BLOCK))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches there.
        kernel[programs](x, *tensors, elements, axes=axes, norm=norm, number=number, block=BLOCK)


def _memory_format(x: Tensor) -> torch.memory_format:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_channels_last else torch.contiguous_format
