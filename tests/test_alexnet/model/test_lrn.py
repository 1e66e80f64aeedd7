"""Normalization against the plain formula, in float64, value by value."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from factories import relative_error
from numpy.typing import NDArray
from reference_model import cross_map, within_map
from torch import Tensor, nn

from alexnet.kernels.lrn import MAPS
from alexnet.model import lrn
from alexnet.model.lrn import CrossMapNorm, WithinMapNorm
from alexnet.recipes import PAPER, SOURCE145

Array = NDArray[np.float64]


def cross_map_by_value(x: Array, alpha: float) -> Array:
    result = np.empty_like(x)
    for n, c, i, j in np.ndindex(x.shape):
        total = sum(x[n, k, i, j] ** 2 for k in range(max(0, c - 2), min(x.shape[1], c + 3)))
        result[n, c, i, j] = x[n, c, i, j] / (2 + alpha * total) ** 0.75
    return result


def within_map_by_value(x: Array) -> Array:
    result = np.empty_like(x)
    for n, c, i, j in np.ndindex(x.shape):
        square = x[n, c, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
        total = (square**2).sum()
        result[n, c, i, j] = x[n, c, i, j] / (1 + 0.001 / 25 * total) ** 0.75
    return result


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
    """Large enough for the sums to outweigh the constants."""
    generator = torch.Generator().manual_seed(0)
    return std * torch.randn((2, maps, 7, 6), generator=generator, dtype=torch.float64)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Array], Array]]] = {
    "paper": (paper_norm, lambda x: cross_map_by_value(x, 1e-4)),
    "source145": (source_norm, lambda x: cross_map_by_value(x, 0.00002)),
    "within a map": (within_norm, within_map_by_value),
}

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "paper": lambda x: cross_map(x, 1e-4),
    "source145": lambda x: cross_map(x, 0.00002),
    "within a map": within_map,
}


def test_the_paper_has_no_normalization_within_a_map() -> None:
    assert PAPER.within_map is None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_values(case: str, with_gradient: bool) -> None:
    build, by_value = CASES[case]
    x = activations().requires_grad_(with_gradient)
    expected = by_value(x.detach().numpy())
    np.testing.assert_allclose(build().double()(x).detach().numpy(), expected, rtol=1e-13)
    found = build()(x.detach().float().requires_grad_(with_gradient))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_normalization_is_felt(case: str) -> None:
    # Or a wrong alpha would hide behind the constant.
    x = activations().numpy()
    constant = x / (1 if case == "within a map" else 2**0.75)
    assert np.abs(CASES[case][1](x) / constant).mean() < 0.9


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_plain_formula(case: str) -> None:
    norm, formula = CASES[case][0](), FORMULAS[case]
    x = activations().requires_grad_()
    upstream = torch.randn_like(x)
    (expected,) = torch.autograd.grad(formula(x), x, upstream)
    (found,) = torch.autograd.grad(norm.double()(x), x, upstream)
    assert relative_error(found, expected) < 1e-13
    x = x.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(norm.float()(x), x, upstream.float())
    assert relative_error(found, expected) < 2e-6


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case: str) -> None:
    x = activations(maps=9, std=60.0)[:1, :, :4, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(CASES[case][0]().double(), (x,))


@pytest.mark.parametrize("case", CASES)
def test_grad_mode_changes_no_bit(case: str) -> None:
    norm, x = CASES[case][0](), activations().float()
    with torch.no_grad():
        without = norm(x)
        without_too = norm(x.clone().requires_grad_())
    assert torch.equal(norm(x.clone().requires_grad_()), without)
    assert torch.equal(without_too, without)


@pytest.mark.parametrize("case", CASES)
def test_neither_input_nor_upstream_gradient_is_written_to(case: str) -> None:
    x, upstream = activations(), torch.ones_like(activations())
    leaf = x.clone().requires_grad_()
    CASES[case][0]().double()(leaf).backward(upstream)
    with torch.no_grad():
        CASES[case][0]().double()(leaf)
    assert torch.equal(leaf.detach(), x)
    assert torch.equal(upstream, torch.ones_like(x))


def test_torch_divides_alpha_by_the_window_as_the_source_did() -> None:
    x = activations()
    torch_norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
    assert relative_error(source_norm().double()(x), torch_norm(x)) < 1e-14
    assert relative_error(paper_norm().double()(x), torch_norm(x)) > 0.05
    stronger = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
    assert relative_error(paper_norm().double()(x), stronger(x)) < 1e-14


@pytest.mark.parametrize("maps", [1, 3, 5])
def test_fewer_maps_than_the_window_is_wide(maps: int) -> None:
    x = activations(maps)
    expected = cross_map_by_value(x.numpy(), 1e-4)
    np.testing.assert_allclose(paper_norm().double()(x).numpy(), expected, rtol=1e-13)


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_bit(case: str) -> None:
    # More maps than a tile holds, the last tile smaller.
    x = activations(2 * MAPS + 5).repeat(4, 1, 1, 1)[:7].float()
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
def test_the_form_for_other_devices_is_the_same_function(case: str) -> None:
    norm, x = CASES[case][0]().double(), activations(2 * MAPS + 5)
    assert isinstance(norm, CrossMapNorm | WithinMapNorm)
    numbers = norm.norm
    settings = isinstance(norm, WithinMapNorm), numbers.size, numbers.bias, numbers.alpha
    upstream = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    (gradient,) = torch.autograd.grad(y, leaf, upstream)
    for layout in (torch.contiguous_format, torch.channels_last):
        given, above = x.to(memory_format=layout), upstream.to(memory_format=layout)
        assert relative_error(lrn._normalized(given, *settings), y.detach()) < 1e-14
        found = lrn._derivative(above, given, *settings)
        assert relative_error(found, gradient) < 1e-13


@pytest.mark.parametrize("case", CASES)
def test_any_layout_in_memory_and_no_images(case: str) -> None:
    norm, x = CASES[case][0](), activations().float()
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    found, expected = norm(last), norm(x.requires_grad_())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(y, of, x.detach()) for y, of in ((found, last), (expected, x))]
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(norm(x.transpose(2, 3)), norm(x.transpose(2, 3).contiguous()))
    assert norm(x[:0]).shape == x[:0].shape


@pytest.mark.parametrize("case", CASES)
def test_the_form_for_compilers_is_the_same_function(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, x = CASES[case][0]().double(), activations().requires_grad_()
    (expected,) = torch.autograd.grad(norm(x).sum(), x)
    values = norm(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    (found,) = torch.autograd.grad(norm(x).sum(), x)
    assert relative_error(norm(x), values) < 1e-14
    assert relative_error(found, expected) < 1e-13


def test_no_weights_are_added() -> None:
    for build, _ in CASES.values():
        assert not list(build().parameters())
        assert not build().state_dict()
