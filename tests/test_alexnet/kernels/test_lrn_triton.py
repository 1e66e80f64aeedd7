"""The normalizations' kernels for GPUs, run by Triton's interpreter on the CPU."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from factories import relative_error
from fake_device import GPU0, shapes_only
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_model import ALPHA, cross_map, within_map
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet.model.towers import Tower
from alexnet.recipes import PAPER, SOURCE145

NAME = "alexnet.kernels.lrn_triton"
ACROSS = (False, 5, 2.0, ALPHA["source145"])
WITHIN = (True, 5, 1.0, 0.001 / 25)
CASES: dict[str, tuple[tuple[Any, ...], Callable[[Tensor], Tensor]]] = {
    "across maps": (ACROSS, lambda x: cross_map(x, ALPHA["source145"])),
    "within a map": (WITHIN, within_map),
}
"""Settings of the kernels, and the plain formula."""
TOLERANCES = {torch.float64: 1e-14, torch.float32: 5e-7, torch.bfloat16: 5e-3}
"""Of the norm of the difference, relative; bfloat16 rounds the result to 8 significant bits."""
NCHW, NHWC = torch.contiguous_format, torch.channels_last


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    """A copy of the module whose kernels are interpreted."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec = importlib.util.find_spec(NAME)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def values_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, upstream)[0]


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float64, NCHW), (torch.float32, NHWC), (torch.float32, NCHW), (torch.bfloat16, NHWC)],
    ids=str,
)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(
    kernels: ModuleType, case: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    numbers, reference = CASES[case]
    # Two programs for each image, of which the second one is not full.
    shape = 1, 9, 7, 13
    assert kernels.BLOCK < 9 * 7 * 13 < 2 * kernels.BLOCK
    generator = torch.Generator().manual_seed(0)
    x, upstream = (
        (std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for std in (150, 1)
    )
    x = x.contiguous(memory_format=layout)
    expected, expected_gradient = values_and_gradient(reference, x.double(), upstream.double())
    before = x.clone()
    y = kernels.normalize(x, *numbers)
    gradient = kernels.normalize_backward(upstream, x, *numbers)
    assert torch.equal(x, before)
    for result in (y, gradient):
        assert result.dtype == dtype
        assert result.stride() == x.stride()
    assert relative_error(y.double(), expected) < TOLERANCES[dtype]
    assert relative_error(gradient.double(), expected_gradient) < TOLERANCES[dtype]


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6)),
    size=st.sampled_from([3, 5]),
    within=st.booleans(),
    layout=st.sampled_from([NCHW, NHWC]),
    seed=st.integers(0, 99),
)
def test_any_shape(
    kernels: ModuleType,
    shape: tuple[int, ...],
    size: int,
    within: bool,
    layout: torch.memory_format,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (torch.randn(shape, generator=generator) for _ in range(2))
    x = x.contiguous(memory_format=layout)
    numbers = within, size, 0.5, 0.3
    expected, expected_gradient = values_and_gradient(
        lambda exact: exact * plain_power(exact, *numbers), x.double(), upstream.double()
    )
    y, gradient = kernels.normalize(x, *numbers), kernels.normalize_backward(upstream, x, *numbers)
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-6, atol=1e-6)


def plain_power(x: Tensor, within: bool, size: int, bias: float, alpha: float) -> Tensor:
    """d ^ -.75, by the definition."""
    half = size // 2
    sums = torch.zeros_like(x)
    for n, c, h, w in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        rows, columns, maps = slice(h, h + 1), slice(w, w + 1), slice(c, c + 1)
        if within:
            rows = slice(max(h - half, 0), h + half + 1)
            columns = slice(max(w - half, 0), w + half + 1)
        else:
            maps = slice(max(c - half, 0), c + half + 1)
        sums[n, c, h, w] = x[n, maps, rows, columns].square().sum()
    return (bias + alpha * sums) ** -0.75


def on_cuda_key(operator: Any, *arguments: Any) -> Tensor:
    """Call the implementation that is registered for CUDA, on tensors of the CPU."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    result: Tensor = operator.default.redispatch(key, *arguments)
    return result


@pytest.mark.parametrize("numbers", [ACROSS, WITHIN], ids=["across", "within"])
@pytest.mark.parametrize("installed", [True, False])
def test_the_operator_on_gpus_with_and_without_triton(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, installed: bool, numbers: tuple[Any, ...]
) -> None:
    calls = []

    class Kernels:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(kernels, name)

    module = Kernels() if installed else None
    monkeypatch.setitem(sys.modules, NAME, module)
    monkeypatch.setattr("alexnet.kernels.lrn_triton", module, raising=False)
    if not installed:
        monkeypatch.delattr("alexnet.kernels.lrn_triton")
    x, upstream = (50 * torch.randn(1, 6, 3, 4) for _ in range(2))
    x, upstream = x.bfloat16(), upstream.bfloat16()
    y = on_cuda_key(torch.ops.alexnet.normalize, x, *numbers)
    gradient = on_cuda_key(torch.ops.alexnet.normalize_backward, upstream, x, *numbers)
    assert calls == (["normalize", "normalize_backward"] if installed else [])
    expected, expected_gradient = values_and_gradient(
        CASES["within a map" if numbers == WITHIN else "across maps"][1],
        x.double(),
        upstream.double(),
    )
    assert y.dtype == gradient.dtype == torch.bfloat16
    assert relative_error(y.double(), expected) < TOLERANCES[torch.bfloat16]
    assert relative_error(gradient.double(), expected_gradient) < TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("numbers", [ACROSS, WITHIN], ids=["across", "within"])
def test_the_operator_is_registered_for_autograd_and_compilers(numbers: tuple[Any, ...]) -> None:
    for x in (torch.randn(2, 6, 3, 4), torch.randn(2, 3, 4, 6).permute(0, 3, 1, 2)):
        arguments = (x.requires_grad_(), *numbers)
        torch.library.opcheck(torch.ops.alexnet.normalize.default, arguments)


@contextmanager
def autocast_without_gpus() -> Iterator[None]:
    """``torch.autocast`` for GPUs, which does nothing where there is none."""
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", dtype)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the normalizations and the type of each one's input."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "alexnet":
            self.inputs.append((func._schema.name, args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("recipe", [PAPER, SOURCE145], ids=lambda recipe: recipe.name)
def test_bfloat16_goes_in_and_out_on_gpus(
    recipe: Any, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    with shapes_only(), GPU0:
        tower, crops = Tower(recipe), torch.empty(2, 3, 224, 224)
        with Recorder() as recorder, autocast_without_gpus():
            maps = tower.before_conv3(crops)
        assert maps.dtype == torch.bfloat16
        count = 3 if recipe.within_map else 2
        assert recorder.inputs == [("alexnet::normalize", torch.bfloat16)] * count


@pytest.mark.slow
@pytest.mark.parametrize("type", ["*fp32", "*bf16", "*fp64"])
def test_the_kernels_compile_for_gpus(type: str) -> None:
    """For a GPU of compute capability 8.0; no GPU is needed for that. Nothing may spill."""
    pytest.importorskip("triton")
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from alexnet.kernels import lrn_triton

    number = tl.float64 if type == "*fp64" else tl.float32
    across, within = (48, 1, 55 * 55, 1, 2, 0), (27, 27, 27 * 128, 128, 2, 2)
    constants: dict[str, Any] = {"norm": (2.0, 2e-5), "number": number, "block": lrn_triton.BLOCK}
    variants: list[tuple[Any, dict[str, Any]]] = [
        (lrn_triton.forward_kernel, {"axes": across}),
        (lrn_triton.forward_kernel, {"axes": within}),
        (lrn_triton.terms_kernel, {"axes": within}),
        (lrn_triton.backward_kernel, {"axes": across, "terms": None}),
        (lrn_triton.backward_kernel, {"axes": within}),
    ]
    for kernel, own in variants:
        fixed = constants | own
        kinds = {"size": "i32"} | dict.fromkeys(fixed, "constexpr")
        signature = {name: kinds.get(name, type) for name in kernel.arg_names}
        if "terms" in signature and "terms" not in fixed and type == "*bf16":
            signature["terms"] = "*fp32"
        source = ASTSource(kernel, signature, fixed)
        ptx = compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
        elements = lrn_triton.BLOCK // (4 * 32)  # Of each thread, with four warps of 32.
        assert ptx.count("st.global") == elements
        assert "ld.local" not in ptx
