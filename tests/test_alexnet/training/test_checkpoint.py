"""What a checkpoint holds, and what is said when it is damaged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import narrow_network
from safetensors.torch import load_file

from alexnet.errors import UserError
from alexnet.metrics import Errors
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, SOURCE145
from alexnet.training.checkpoint import (
    TrainState,
    load,
    load_position,
    load_weights,
    read_recipe,
    save,
    snapshot,
)
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates

POSITION = TrainState(
    epoch=3,
    offset=128,
    step=77,
    epoch_errors=Errors(images=128, loss=3.25, top1_wrong=100, top5_wrong=60),
    history=[{"epoch": 1.0, "val_top1_error": 0.1 + 0.2}],
)
MEAN = torch.linspace(0, 255, 3 * 224 * 224).reshape(3, 224, 224)


def trained(seed: int) -> tuple[AlexNet, MomentumSGD]:
    """A network with weights and momentum of its own."""
    model = narrow_network(PAPER, seed=seed)
    optimizer = build_optimizer(model, PAPER)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        optimizer.velocity(parameter).normal_(generator=generator)
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    other, its_optimizer = trained(2)
    assert load(str(tmp_path), other, its_optimizer) == POSITION
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert torch.equal(optimizer.velocity(mine), its_optimizer.velocity(its))
        assert its.requires_grad
    assert load_position(str(tmp_path)) == POSITION


def test_weights_alone(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    (tmp_path / "velocity.safetensors").unlink()
    other, _ = trained(2)
    load_weights(str(tmp_path), other)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_plain_tensors_and_json(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "mean.safetensors",
        "model.safetensors",
        "position.json",
        "velocity.safetensors",
    ]
    value = json.loads((tmp_path / "position.json").read_text())
    assert (value["epoch"], value["offset"], value["step"]) == (3, 128, 77)
    assert read_recipe(str(tmp_path))["name"] == "paper"
    mean = load_file(tmp_path / "mean.safetensors")
    assert list(mean) == ["mean"]
    assert torch.equal(mean["mean"], MEAN)
    weights = load_file(tmp_path / "model.safetensors")
    velocity = load_file(tmp_path / "velocity.safetensors")
    named = dict(model.named_parameters())
    assert weights.keys() == velocity.keys() == named.keys()
    for name, parameter in named.items():
        assert torch.equal(weights[name], parameter)
        assert torch.equal(velocity[name], optimizer.velocity(parameter))


@pytest.mark.parametrize("name", ["model.safetensors", "velocity.safetensors", "position.json"])
@pytest.mark.parametrize("damage", ["half", "header", "empty", "text", "missing"])
def test_damage_is_named(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    path = tmp_path / name
    data = path.read_bytes()
    contents = {
        "half": data[: len(data) // 2],
        "header": data[:20],
        "empty": b"",
        "text": b"no" * 9,
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(UserError) as caught:
        load(str(tmp_path), model, optimizer)
    message = str(caught.value)
    assert message.startswith(f"{path}: the checkpoint can't be read")
    assert "\n" not in message


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    other = narrow_network(PAPER, classes=5)
    before = other.fc8.weight.detach().clone()
    with pytest.raises(UserError, match="belongs to another network"):
        load_weights(str(tmp_path), other)
    assert torch.equal(other.fc8.weight, before), "nothing was loaded"


PAIRS = [
    pytest.param(["cpu", "cpu"], id="named one by one"),
    pytest.param(
        ["cuda:0", "cuda:1"],
        marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
        id="two GPUs",
    ),
]


@pytest.mark.parametrize("names", PAIRS)
def test_from_two_devices_to_one_and_back(tmp_path: Path, names: list[str]) -> None:
    def step(model: AlexNet, optimizer: MomentumSGD) -> None:
        """An update whose gradients don't depend on a device's arithmetic."""
        for parameter in model.parameters():
            parameter.grad = parameter.detach().sign()
        set_rates(optimizer, EpochRates(2**-10))
        optimizer.step()

    devices = [torch.device(name) for name in names]
    there, back = tmp_path / "there", tmp_path / "back"
    there.mkdir()
    back.mkdir()
    two = narrow_network(PAPER, seed=1)
    place_towers(two, devices)
    its_optimizer = build_optimizer(two, PAPER)
    step(two, its_optimizer)
    save(str(there), snapshot(two, its_optimizer, POSITION, MEAN))

    one, optimizer = trained(2)
    load(str(there), place_towers(one, [torch.device("cpu")]), optimizer)
    for mine, its in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, its.cpu())
        assert torch.equal(optimizer.velocity(mine), its_optimizer.velocity(its).cpu())
    step(one, optimizer)
    save(str(back), snapshot(one, optimizer, POSITION, MEAN))

    again = narrow_network(PAPER, seed=3)
    place_towers(again, devices)
    last_optimizer = build_optimizer(again, PAPER)
    load(str(back), again, last_optimizer)
    assert [tower.device for tower in again.towers] == devices
    for mine, its in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, its.cpu())
        velocity = last_optimizer.velocity(its)
        assert velocity.device == its.device
        assert torch.equal(optimizer.velocity(mine), velocity.cpu())


@pytest.mark.parametrize("change", ["cross_map", "within_map", "norm1_before_relu", "pool_size"])
def test_another_function_with_the_same_shapes_is_refused(tmp_path: Path, change: str) -> None:
    model, optimizer = trained(1)
    save(str(tmp_path), snapshot(model, optimizer, POSITION, MEAN))
    load_weights(str(tmp_path), narrow_network(replace(PAPER, learning_rate=0.5)))
    others: dict[str, Any] = {
        "cross_map": None,
        "within_map": SOURCE145.within_map,
        "norm1_before_relu": True,
        "pool_size": 2,
    }
    other = narrow_network(replace(PAPER, **{change: others[change]}))
    with pytest.raises(UserError, match=f"belongs to another network .{change} is"):
        load_weights(str(tmp_path), other)


def test_new_momentum_is_zero_on_disk(tmp_path: Path) -> None:
    model = narrow_network(PAPER)
    save(str(tmp_path), snapshot(model, build_optimizer(model, PAPER), TrainState(), MEAN))
    velocity = load_file(tmp_path / "velocity.safetensors")
    assert all(not tensor.any() for tensor in velocity.values())
    assert len(velocity) == len(list(model.parameters()))
