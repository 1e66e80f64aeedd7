"""The comparison of the towers with one column finds wrong copies between devices."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from fake_device import CPU, FakeDeviceMode, fake_device
from torch import Tensor

from alexnet.diagnostics import equivalence
from alexnet.model import towers
from alexnet.recipes import PAPER, SOURCE145, ablate

NARROW = replace(SOURCE145, hidden=48)
TWO_DEVICES = [fake_device(0), fake_device(1)]
CLASSES = 10


@pytest.fixture(autouse=True)
def _one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "COMPARED_IMAGES", 1)


@pytest.fixture
def fake_devices() -> Iterator[FakeDeviceMode]:
    """Two fake devices during a test."""
    with FakeDeviceMode() as mode:
        yield mode


@pytest.mark.parametrize("tower_count", [1, 2])
def test_one_device_passes(tower_count: int) -> None:
    recipe = ablate(replace(PAPER, hidden=48), towers=tower_count)
    comparison = equivalence.compare(recipe, [CPU], CLASSES)
    assert comparison.passed
    # They are 0 if the network is compared with itself.
    assert 0 < comparison.logits < 1e-12
    assert 0 < comparison.gradients < 1e-12


def test_two_devices_pass(fake_devices: FakeDeviceMode) -> None:
    comparison = equivalence.compare(NARROW, TWO_DEVICES, CLASSES)
    assert comparison.passed
    assert comparison.logits < 1e-12
    assert comparison.gradients < 1e-12


def test_exchanged_towers_do_not_pass(
    fake_devices: FakeDeviceMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_copies(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        return [part.to(device) for part in reversed(parts)]

    monkeypatch.setattr(towers, "copy_to", reversed_copies)
    comparison = equivalence.compare(NARROW, TWO_DEVICES, CLASSES)
    assert not comparison.passed
    assert comparison.logits > 0.1


@pytest.mark.parametrize("corrupt", [torch.zeros_like, Tensor.detach])
def test_missing_activations_and_missing_gradients_do_not_pass(
    corrupt: Callable[[Tensor], Tensor],
    fake_devices: FakeDeviceMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_to = towers.copy_to

    def corrupting_copies(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        return copy_to([p if p.device == device else corrupt(p) for p in parts], device)

    monkeypatch.setattr(towers, "copy_to", corrupting_copies)
    comparison = equivalence.compare(NARROW, TWO_DEVICES, CLASSES)
    assert not comparison.passed
    assert comparison.gradients > 0.1


def test_nan_and_large_differences_do_not_pass() -> None:
    for logits, gradients in ((float("nan"), 0.0), (0.0, float("nan")), (0.0, 1e-8)):
        comparison = equivalence.Comparison(logits=logits, gradients=gradients, layer="")
        assert not comparison.passed
