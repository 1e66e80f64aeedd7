"""``--check-devices``: its lines of text and its JSON line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from fake_device import CPU, FakeDeviceMode, fake_device
from torch import Tensor

from alexnet.diagnostics import devices, equivalence, timing
from alexnet.errors import UserError
from alexnet.model import towers
from alexnet.model.towers import AlexNet, Tower
from alexnet.recipes import RECIPES
from alexnet.training import network
from pipelines import cluster, train
from pipelines.settings import TrainCommandSettings, TrainSettings
from pipelines.training.device_check import measure
from pipelines.training.device_report import DeviceCheckResult

TWO_DEVICES = [fake_device(0), fake_device(1)]
IMAGES = 2
KEYS = [
    "stage",
    "check_devices",
    "passed",
    "images",
    "devices",
    "peer_access",
    "copies",
    "forward_bytes",
    "backward_bytes",
    "step_seconds",
    "images_per_second",
    "tower_seconds",
    "together_seconds",
    "overlap",
    "launch_seconds",
    "launch_bound",
    "peak_bytes",
    "logits_difference",
    "gradients_difference",
    "tolerance",
    "verdict",
    "seconds",
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow networks, few classes, few images, one measurement."""
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, replace(recipe, hidden=48))
    monkeypatch.setattr(devices, "CLASSES", 10)
    monkeypatch.setattr(equivalence, "COMPARED_IMAGES", 1)
    monkeypatch.setattr(timing, "MAX_REPEATS", 1)


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDeviceMode]:
    """Two fake devices during a test."""
    with FakeDeviceMode() as mode:
        monkeypatch.setattr(torch.cuda, "default_generators", mode.generators)
        yield mode


def check(tested_devices: list[torch.device], **values: Any) -> tuple[list[str], dict[str, Any]]:
    """The lines of text, and the JSON line."""
    settings = TrainSettings.model_validate({"batch_size": IMAGES} | values)
    report = measure(settings, tested_devices)
    result = DeviceCheckResult(report=report, seconds=1.0).to_json()
    return list(report.lines()), json.loads(json.dumps(result))


@pytest.mark.slow
def test_two_devices(fake_devices: FakeDeviceMode) -> None:
    lines, result = check(TWO_DEVICES)
    text = "\n".join(lines)
    first, second = result["devices"]
    assert (first["towers"], first["last_layer"]) == ([0], True)
    assert (second["towers"], second["last_layer"]) == ([1], False)
    assert first["parameters"] - second["parameters"] == 48 * 10 + 10
    assert first["bytes"] == 4 * first["parameters"]
    assert f"xla:1 (1 threads) holds tower 1: {second['parameters']:,} parameters" in text
    directions = [("xla:1", "xla:0"), ("xla:0", "xla:1")]
    layers = [("conv3", 128 * 13 * 13), ("fc6", 4608), ("fc7", 24)]
    expected = [(name, *d, 4 * IMAGES * size) for name, size in layers for d in directions]
    expected.append(("fc8", *directions[0], 4 * IMAGES * 24))
    copies = result["copies"]
    assert [(c["layer"], c["source"], c["target"], c["bytes"]) for c in copies] == expected
    assert all(c["seconds"] > 0 and c["bytes_per_second"] > 0 for c in copies)
    assert result["forward_bytes"] == result["backward_bytes"] == sum(e[-1] for e in expected)
    assert "  to conv3 xla:1 → xla:0     0.17 MB in " in text
    assert len(result["tower_seconds"]) == 2
    assert result["overlap"] == sum(result["tower_seconds"]) / result["together_seconds"]
    assert "tower 1 alone" in text
    assert result["step_seconds"] > 0
    assert result["passed"] is True
    assert result["logits_difference"] < 1e-12
    assert result["gradients_difference"] < 1e-12
    assert "in float64" in lines[-2]
    assert lines[-2].endswith("allowed is 1e-09: PASS")
    assert lines[-1].startswith("verdict: usable; the towers overlap ")
    assert lines[-1] == f"verdict: {result['verdict']}"


@pytest.mark.parametrize("tower_count", [1, 2])
def test_one_device(tower_count: int) -> None:
    lines, result = check([CPU], recipe="paper", towers=tower_count)
    assert list(result) == KEYS
    assert (result["stage"], result["check_devices"]) == ("train", True)
    (device,) = result["devices"]
    assert (device["towers"], device["last_layer"]) == (list(range(tower_count)), True)
    assert (result["copies"], result["overlap"]) == ([], None)
    assert result["forward_bytes"] == result["backward_bytes"] == 0
    assert any("nothing is copied" in line for line in lines)
    assert result["passed"] is True
    assert 0 < result["gradients_difference"] < 1e-12


def test_the_batch_is_divided_by_the_workers() -> None:
    _, result = check([CPU], batch_size=5, num_workers=3, channels_last=True)
    assert result["images"] == 2
    assert result["passed"] is True


@pytest.mark.slow
def test_the_comparison_is_in_float64_for_any_training_precision() -> None:
    _, result = check([CPU], precision="bf16")
    assert result["passed"] is True
    assert result["logits_difference"] < 1e-12


@pytest.mark.slow
def test_a_failed_comparison_is_reported(
    fake_devices: FakeDeviceMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reversed_copies(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        return [part.to(device) for part in reversed(parts)]

    monkeypatch.setattr(towers, "copy_to", reversed_copies)
    lines, result = check(TWO_DEVICES)
    assert result["passed"] is False
    assert result["logits_difference"] > 0.1
    assert lines[-2].endswith("FAIL")
    assert "do not train on them" in result["verdict"]


@pytest.mark.slow
def test_what_is_measured_is_what_training_computes(
    fake_devices: FakeDeviceMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precision, layout and compilation, in the training step itself."""
    inputs: list[Tensor] = []
    compiled: list[AlexNet] = []
    before_conv3 = Tower.before_conv3

    def record(self: Tower, crops: Tensor) -> Tensor:
        inputs.append(crops)
        return before_conv3(self, crops)

    monkeypatch.setattr(Tower, "before_conv3", record)
    monkeypatch.setattr(network, "compile_towers", compiled.append)
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for switch in (False, True):
            inputs.clear()
            check(
                TWO_DEVICES,
                precision="tf32" if switch else "float32",
                channels_last=switch,
                compile=switch,
            )
            assert torch.backends.cudnn.allow_tf32 == switch
            assert torch.backends.cuda.matmul.allow_tf32 == switch
            assert torch.backends.cudnn.benchmark
            crops = [x for x in inputs if x.dtype == torch.float32]
            assert all(x.is_contiguous() == (not switch) for x in crops)
            assert len(compiled) == switch
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def test_too_few_gpus_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda: None)
    monkeypatch.setattr(cluster, "started_here", lambda: True)
    node = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    settings = TrainCommandSettings(check_devices=True, device="cuda")
    with pytest.raises(UserError, match=r"^--num-workers 1 --device cuda: .* 2 GPUs don't fit"):
        train.command(settings)
