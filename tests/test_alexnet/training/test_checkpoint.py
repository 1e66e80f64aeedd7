"""The contents of a checkpoint, and the errors for damaged ones."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import narrow_network
from safetensors.torch import load_file

from alexnet.errors import UserError
from alexnet.metrics import LossAndErrors
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import place_towers
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, SOURCE145
from alexnet.training.checkpoint import (
    ARCHITECTURE_FIELDS,
    TrainState,
    load_checkpoint,
    load_train_state,
    load_weights,
    read_recipe,
    save_checkpoint,
    take_snapshot,
)
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates

STATE = TrainState(
    epoch=3,
    offset=128,
    step=77,
    epoch_errors=LossAndErrors(images=128, loss=3.25, top1_wrong=100, top5_wrong=60),
    history=[{"epoch": 1.0, "val_top1_error": 0.1 + 0.2}],
)
MEAN = torch.linspace(0, 255, 3 * 224 * 224).reshape(3, 224, 224)


def network_and_optimizer(seed: int) -> tuple[AlexNet, MomentumSGD]:
    """A network and its optimizer, with random weights and velocities."""
    model = narrow_network(PAPER, seed=seed)
    optimizer = build_optimizer(model, PAPER)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        optimizer.velocity(parameter).normal_(generator=generator)
    return model, optimizer


def test_a_loaded_checkpoint_equals_the_saved_run(tmp_path: Path) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    loaded, loaded_optimizer = network_and_optimizer(2)
    assert load_checkpoint(str(tmp_path), loaded, loaded_optimizer) == STATE
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(optimizer.velocity(a), loaded_optimizer.velocity(b))
        assert b.requires_grad
    assert load_train_state(str(tmp_path)) == STATE


def test_load_weights_needs_no_velocities(tmp_path: Path) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    (tmp_path / "velocity.safetensors").unlink()
    loaded, _ = network_and_optimizer(2)
    load_weights(str(tmp_path), loaded)
    pairs = zip(model.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_plain_tensors_and_json(tmp_path: Path) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    names = {path.name for path in tmp_path.iterdir()}
    tensors = {"mean.safetensors", "model.safetensors", "velocity.safetensors"}
    assert names == tensors | {"train_state.json"}
    state = json.loads((tmp_path / "train_state.json").read_text())
    assert (state["epoch"], state["offset"], state["step"]) == (3, 128, 77)
    assert read_recipe(str(tmp_path))["name"] == "paper"
    mean = load_file(tmp_path / "mean.safetensors")
    assert list(mean) == ["mean"]
    assert torch.equal(mean["mean"], MEAN)
    weights = load_file(tmp_path / "model.safetensors")
    velocity = load_file(tmp_path / "velocity.safetensors")
    parameters = dict(model.named_parameters())
    assert weights.keys() == velocity.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert torch.equal(weights[name], parameter)
        assert torch.equal(velocity[name], optimizer.velocity(parameter))


def test_the_sha256_of_every_file_is_stored(tmp_path: Path) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    stored = json.loads((tmp_path / "train_state.json").read_text())["files"]
    assert stored == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tmp_path.glob("*.safetensors")
    }


@pytest.mark.parametrize("name", ["model.safetensors", "velocity.safetensors", "train_state.json"])
@pytest.mark.parametrize("damage", ["half", "header", "empty", "text", "missing"])
def test_the_error_names_the_damaged_file(tmp_path: Path, name: str, damage: str) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
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
        load_checkpoint(str(tmp_path), model, optimizer)
    message = str(caught.value)
    assert message.startswith(f"{path}: the checkpoint can't be read")
    assert "\n" not in message


def test_another_number_of_classes_is_an_error(tmp_path: Path) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    other = narrow_network(PAPER, classes=5)
    before = other.fc8.weight.detach().clone()
    with pytest.raises(UserError, match="belongs to another network"):
        load_weights(str(tmp_path), other)
    assert torch.equal(other.fc8.weight, before), "no weights are loaded"


PAIRS = [
    pytest.param(["cpu", "cpu"], id="two CPU devices"),
    pytest.param(
        ["cuda:0", "cuda:1"],
        marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
        id="two GPUs",
    ),
]


@pytest.mark.parametrize("names", PAIRS)
def test_checkpoints_of_two_devices_load_on_one_and_the_reverse(
    tmp_path: Path, names: list[str]
) -> None:
    def step(model: AlexNet, optimizer: MomentumSGD) -> None:
        """An update whose gradients do not depend on a device's arithmetic."""
        for parameter in model.parameters():
            parameter.grad = parameter.detach().sign()
        set_rates(optimizer, EpochRates(2**-10))
        optimizer.step()

    devices = [torch.device(name) for name in names]
    of_two_devices, of_one_device = tmp_path / "two", tmp_path / "one"
    of_two_devices.mkdir()
    of_one_device.mkdir()
    two = narrow_network(PAPER, seed=1)
    place_towers(two, devices)
    two_optimizer = build_optimizer(two, PAPER)
    step(two, two_optimizer)
    save_checkpoint(str(of_two_devices), take_snapshot(two, two_optimizer, STATE, MEAN))

    one, one_optimizer = network_and_optimizer(2)
    place_towers(one, [torch.device("cpu")])
    load_checkpoint(str(of_two_devices), one, one_optimizer)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
        assert torch.equal(one_optimizer.velocity(a), two_optimizer.velocity(b).cpu())
    step(one, one_optimizer)
    save_checkpoint(str(of_one_device), take_snapshot(one, one_optimizer, STATE, MEAN))

    loaded = narrow_network(PAPER, seed=3)
    place_towers(loaded, devices)
    loaded_optimizer = build_optimizer(loaded, PAPER)
    load_checkpoint(str(of_one_device), loaded, loaded_optimizer)
    assert [tower.device for tower in loaded.towers] == devices
    for a, b in zip(one.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b.cpu())
        velocity = loaded_optimizer.velocity(b)
        assert velocity.device == b.device
        assert torch.equal(one_optimizer.velocity(a), velocity.cpu())


@pytest.mark.parametrize("change", ARCHITECTURE_FIELDS)
def test_another_function_with_the_same_shapes_is_an_error(tmp_path: Path, change: str) -> None:
    model, optimizer = network_and_optimizer(1)
    save_checkpoint(str(tmp_path), take_snapshot(model, optimizer, STATE, MEAN))
    load_weights(str(tmp_path), narrow_network(replace(PAPER, learning_rate=0.5)))
    others: dict[str, Any] = {
        "cross_map": None,
        "within_map": SOURCE145.within_map,
        "norm1_before_relu": True,
        "pool_size": 2,
        "pool_ceil": True,
        "conv1_padding": (1, 2),
        "conv2_padding": 1,
        "conv5_padding": 0,
    }
    other = narrow_network(replace(PAPER, **{change: others[change]}))
    with pytest.raises(UserError, match=f"belongs to another network .{change} is"):
        load_weights(str(tmp_path), other)


def test_a_checkpoint_without_the_newer_fields_is_of_the_network_of_that_time(
    tmp_path: Path,
) -> None:
    model, optimizer = network_and_optimizer(1)
    snapshot = take_snapshot(model, optimizer, STATE, MEAN)
    recipe = json.loads(snapshot.recipe)
    paddings = ("conv1_padding", "conv2_padding", "conv5_padding")
    for name in (*paddings, "pool_ceil", "conv6", "kernels"):
        del recipe[name]
    save_checkpoint(str(tmp_path), snapshot._replace(recipe=json.dumps(recipe)))
    load_weights(str(tmp_path), narrow_network(PAPER))
    with pytest.raises(UserError, match=r"another network .conv2_padding is 2, not 1"):
        load_weights(str(tmp_path), narrow_network(replace(PAPER, conv2_padding=1)))
    assert GroupedAlexNet(recipe, 4).conv2.padding == (2, 2)


def test_velocities_before_the_first_step_are_zero(tmp_path: Path) -> None:
    model = narrow_network(PAPER)
    save_checkpoint(
        str(tmp_path), take_snapshot(model, build_optimizer(model, PAPER), TrainState(), MEAN)
    )
    velocity = load_file(tmp_path / "velocity.safetensors")
    assert all(not tensor.any() for tensor in velocity.values())
    assert len(velocity) == len(list(model.parameters()))
