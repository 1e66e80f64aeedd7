"""The look at the devices: on the CPU, and on two that are pretended."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from fake_device import CPU, Pretending, device
from torch import Tensor

from alexnet.diagnostics import devices, equivalence
from alexnet.errors import UserError
from alexnet.model import towers
from alexnet.recipes import RECIPES
from pipelines import cluster, train
from pipelines.console.cli import CheckFailedError, run_script
from pipelines.settings import TrainCommandSettings, TrainSettings
from pipelines.training.device_check import look

NARROW = {name: replace(recipe, hidden=48) for name, recipe in RECIPES.items()}
TWO = [device(0), device(1)]
IMAGES = 2


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, recipe in NARROW.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.setattr(devices, "CLASSES", 10)
    monkeypatch.setattr(equivalence, "COMPARED", IMAGES)
    monkeypatch.setattr(devices, "MOST", 1)


@pytest.fixture
def pretending() -> Iterator[Pretending]:
    """Two devices for the length of a test."""
    with Pretending() as mode:
        yield mode


def look_at(devices: list[torch.device], **values: Any) -> tuple[list[str], Mapping[str, Any]]:
    """What is said, and the figures as a reader of the last line gets them."""
    lines: list[str] = []
    settings = TrainSettings.model_validate({"batch_size": IMAGES} | values)
    figures = look(settings, devices, lines.append)
    return lines, json.loads(json.dumps(figures))


def test_two_devices(pretending: Pretending) -> None:
    lines, figures = look_at(TWO)
    text = "\n".join(lines)
    first, second = figures["devices"]
    assert (first["towers"], first["last_layer"]) == ([0], True)
    assert (second["towers"], second["last_layer"]) == ([1], False)
    assert first["parameters"] - second["parameters"] == 48 * 10 + 10
    assert first["bytes"] == 4 * first["parameters"]
    assert f"xla:1 (1 threads) holds tower 1: {second['parameters']:,} parameters" in text
    ways = [("xla:1", "xla:0"), ("xla:0", "xla:1")]
    layers = [("conv3", 128 * 13 * 13), ("fc6", 4608), ("fc7", 24)]
    expected = [(name, *way, 4 * IMAGES * size) for name, size in layers for way in ways]
    expected.append(("fc8", *ways[0], 4 * IMAGES * 24))
    copies = figures["copies"]
    assert [(c["layer"], c["source"], c["target"], c["bytes"]) for c in copies] == expected
    assert all(c["seconds"] > 0 and c["bytes_per_second"] > 0 for c in copies)
    assert figures["forward_bytes"] == figures["backward_bytes"] == sum(e[-1] for e in expected)
    assert "  to conv3 xla:1 → xla:0     0.17 MB in " in text
    assert len(figures["tower_seconds"]) == 2
    assert figures["overlap"] == sum(figures["tower_seconds"]) / figures["together_seconds"]
    assert "tower 1 alone" in text
    assert figures["step_seconds"] > 0
    assert figures["passed"] is True
    assert figures["logits_difference"] < 1e-5
    assert figures["gradients_difference"] < 1e-5
    assert lines[-1].endswith("allowed is 1e-03: PASS")


@pytest.mark.parametrize("towers", [1, 2])
def test_one_device(towers: int) -> None:
    lines, figures = look_at([CPU], recipe="paper", towers=towers)
    (found,) = figures["devices"]
    assert (found["towers"], found["last_layer"]) == (list(range(towers)), True)
    assert (figures["copies"], figures["overlap"]) == ([], None)
    assert figures["forward_bytes"] == figures["backward_bytes"] == 0
    assert any("nothing is copied" in line for line in lines)
    assert figures["passed"] is True
    assert 0 < figures["gradients_difference"] < 1e-5, "compared with other code, not with itself"


def test_a_workers_share_of_the_batch() -> None:
    _, figures = look_at([CPU], batch_size=5, num_workers=3, channels_last="on")
    assert figures["images"] == 2
    assert figures["passed"] is True


def test_the_comparison_is_in_float32_whatever_training_is_in() -> None:
    _, figures = look_at([CPU], precision="bf16")
    assert figures["passed"] is True
    assert figures["logits_difference"] < 1e-5


def test_exchanged_towers_are_found(
    pretending: Pretending, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(parts: Sequence[Tensor], device: torch.device) -> Tensor:
        return torch.cat([part.to(device) for part in reversed(parts)], dim=1)

    monkeypatch.setattr(towers, "_gather", exchanged)
    lines, figures = look_at(TWO)
    assert figures["passed"] is False
    assert figures["logits_difference"] > 0.1
    assert lines[-1].endswith("FAIL")


@pytest.mark.parametrize("loss", [torch.zeros_like, Tensor.detach])
def test_lost_maps_and_lost_gradients_are_found(
    loss: Callable[[Tensor], Tensor], pretending: Pretending, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet = towers._gather

    def losing(parts: Sequence[Tensor], device: torch.device) -> Tensor:
        return meet([p if p.device == device else loss(p) for p in parts], device)

    monkeypatch.setattr(towers, "_gather", losing)
    found = equivalence.compare(NARROW["source145"], TWO, classes=10)
    assert not found.passed
    assert found.gradients > 0.1


def test_too_few_gpus_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda: None)
    node = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    settings = TrainCommandSettings(check_devices=True, device="cuda")
    with pytest.raises(UserError, match=r"^--device cuda: 1 workers of 2 GPUs need 2, .* have 1;"):
        train.command(settings)


def test_no_number_does_not_pass() -> None:
    for pair in ((float("nan"), 0.0), (0.0, float("nan")), (0.0, 0.01)):
        assert not equivalence.Comparison(logits=pair[0], gradients=pair[1], layer="").passed


def test_a_failed_check_prints_its_figures_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(settings: TrainCommandSettings) -> Mapping[str, Any]:
        assert settings.check_devices
        raise CheckFailedError("other results", {"passed": False})

    monkeypatch.setattr(sys, "argv", ["train.py", "--check-devices"])
    with pytest.raises(SystemExit) as left:
        run_script(TrainCommandSettings, work, "text")
    assert left.value.code == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == {"passed": False}
    assert printed.err == "train.py: failed: other results\n"
