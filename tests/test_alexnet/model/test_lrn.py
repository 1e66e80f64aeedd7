"""The normalizations against the plain formulas of ``reference_model``, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from factories import relative_error
from reference_model import ALPHA, cross_map, within_map
from torch import Tensor, nn

from alexnet.kernels.lrn import TILE_MAPS
from alexnet.model.lrn import (
    CrossMapNorm,
    WithinMapNorm,
    normalize_backward_with_torch,
    normalize_with_torch,
)
from alexnet.recipes import PAPER, SOURCE145


def paper_norm() -> nn.Module:
    assert PAPER.cross_map is not None
    return CrossMapNorm(PAPER.cross_map)


def source_norm() -> nn.Module:
    assert SOURCE145.cross_map is not None
    return CrossMapNorm(SOURCE145.cross_map)


def within_norm() -> nn.Module:
    assert SOURCE145.within_map is not None
    return WithinMapNorm(SOURCE145.within_map)


def activations(maps: int = 9, std: float = 150.0) -> Tensor:
    """(2, maps, 7, 6) float64, so large that the sums are not small beside the constants."""
    generator = torch.Generator().manual_seed(0)
    return std * torch.randn((2, maps, 7, 6), generator=generator, dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "paper": (paper_norm, lambda x: cross_map(x, ALPHA["paper"])),
    "source145": (source_norm, lambda x: cross_map(x, ALPHA["source145"])),
    "within a map": (within_norm, within_map),
}
"""The module and its reference."""


def test_the_paper_has_no_normalization_within_a_map() -> None:
    assert PAPER.within_map is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_values(case: str, with_gradient: bool) -> None:
    build, reference = CASES[case]
    x = activations().requires_grad_(with_gradient)
    expected = reference(x.detach()).numpy()
    np.testing.assert_allclose(build().double()(x).detach().numpy(), expected, rtol=1e-13)
    single = build()(x.detach().float().requires_grad_(with_gradient))
    np.testing.assert_allclose(single.detach().numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_sums_are_not_small_beside_the_constant(case: str) -> None:
    # With small sums, a wrong alpha would hardly change the result.
    x = activations()
    constant = x / (1 if case == "within a map" else 2**0.75)
    assert (CASES[case][1](x) / constant).abs().mean() < 0.9


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_plain_formula(case: str) -> None:
    norm, reference = CASES[case][0](), CASES[case][1]
    x = activations().requires_grad_()
    upstream = torch.randn_like(x)
    (expected,) = torch.autograd.grad(reference(x), x, upstream)
    (gradient,) = torch.autograd.grad(norm.double()(x), x, upstream)
    assert relative_error(gradient, expected) < 1e-13
    x = x.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(norm.float()(x), x, upstream.float())
    assert relative_error(gradient, expected) < 2e-6


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case: str) -> None:
    x = activations(maps=9, std=60.0)[:1, :, :4, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(CASES[case][0]().double(), (x,))


@pytest.mark.parametrize("case", CASES)
def test_grad_mode_changes_no_bit(case: str) -> None:
    norm, x = CASES[case][0](), activations().float()
    with torch.no_grad():
        plain = norm(x)
        requiring_grad = norm(x.clone().requires_grad_())
    assert torch.equal(norm(x.clone().requires_grad_()), plain)
    assert torch.equal(requiring_grad, plain)


@pytest.mark.parametrize("case", CASES)
def test_inputs_and_upstream_gradients_are_not_modified(case: str) -> None:
    x, upstream = activations(), torch.ones_like(activations())
    leaf = x.clone().requires_grad_()
    CASES[case][0]().double()(leaf).backward(upstream)
    with torch.no_grad():
        CASES[case][0]().double()(leaf)
    assert torch.equal(leaf.detach(), x)
    assert torch.equal(upstream, torch.ones_like(x))


def test_torch_divides_alpha_by_the_window_size_as_the_source_does() -> None:
    x = activations()
    torch_norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
    assert relative_error(source_norm().double()(x), torch_norm(x)) < 1e-14
    assert relative_error(paper_norm().double()(x), torch_norm(x)) > 0.05
    five_times = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    assert relative_error(paper_norm().double()(x), five_times(x)) < 1e-14


@pytest.mark.parametrize("maps", [1, 3, 5])
def test_fewer_maps_than_the_window_size(maps: int) -> None:
    x = activations(maps)
    assert relative_error(paper_norm().double()(x), cross_map(x, ALPHA["paper"])) < 1e-13


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("case", CASES)
def test_the_number_of_threads_changes_no_bit(case: str) -> None:
    # More maps than a tile has, so that the last tile is smaller.
    x = activations(2 * TILE_MAPS + 5).repeat(4, 1, 1, 1)[:7].float()
    results = []
    for threads in (1, 2, 5, 8):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        y = CASES[case][0]()(leaf)
        y.backward(x)
        assert leaf.grad is not None
        results.append((y.detach(), leaf.grad))
    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("case", CASES)
def test_the_implementation_for_other_devices_is_the_same_function(case: str) -> None:
    norm, x = CASES[case][0]().double(), activations(2 * TILE_MAPS + 5)
    assert isinstance(norm, CrossMapNorm | WithinMapNorm)
    numbers = norm.norm
    settings = isinstance(norm, WithinMapNorm), numbers.size, numbers.bias, numbers.alpha
    upstream = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    (expected,) = torch.autograd.grad(y, leaf, upstream)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, upstream = (t.contiguous(memory_format=memory_format) for t in (x, upstream))
        assert relative_error(normalize_with_torch(x, *settings), y.detach()) < 1e-14
        gradient = normalize_backward_with_torch(upstream, x, *settings)
        assert relative_error(gradient, expected) < 1e-13


@pytest.mark.parametrize("case", CASES)
def test_any_memory_format_and_an_empty_batch(case: str) -> None:
    norm, x = CASES[case][0](), activations().float()
    channels_last = x.to(memory_format=torch.channels_last).requires_grad_()
    y, expected = norm(channels_last), norm(x.requires_grad_())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, expected)
    (gradient,) = torch.autograd.grad(y, channels_last, x.detach())
    (expected_gradient,) = torch.autograd.grad(expected, x, x.detach())
    assert torch.equal(gradient, expected_gradient)
    assert torch.equal(norm(x.transpose(2, 3)), norm(x.transpose(2, 3).contiguous()))
    assert norm(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize("case", CASES)
def test_the_implementation_for_compilers_is_the_same_function(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, x = CASES[case][0]().double(), activations().requires_grad_()
    (expected,) = torch.autograd.grad(norm(x).sum(), x)
    values = norm(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    assert relative_error(norm(x), values) < 1e-14
    assert relative_error(gradient, expected) < 1e-13


def test_the_modules_have_no_weights() -> None:
    for build, _ in CASES.values():
        assert not list(build().parameters())
        assert not build().state_dict()
