"""The devices of the towers and the copies between them, with tensors that have no values."""

from collections import Counter

import pytest
import torch
from factories import narrow_network
from fake_device import CPU, GPU0, GPU1, shapes_only
from packaging.version import Version

from alexnet.diagnostics.copies import CopyTracer
from alexnet.model import towers
from alexnet.model.placement import devices_per_tower, from_grouped, place_towers, to_grouped
from alexnet.recipes import RECIPES


@pytest.mark.parametrize("gradients", [True, False])
def test_the_towers_exchange_activations_only_in_four_layers(gradients: bool) -> None:
    count, hidden = 3, 48
    network = narrow_network(RECIPES["source145"]).eval()
    with shapes_only(), torch.set_grad_enabled(gradients):
        place_towers(network, [GPU0, GPU1])
        crops = [torch.empty(count, 3, 224, 224, device=device) for device in (GPU0, GPU1)]
        with CopyTracer() as tracer:
            logits = network(*crops)
    assert (logits.device, tuple(logits.shape)) == (GPU0, (count, 4))
    directions = (GPU0, GPU1), (GPU1, GPU0)
    exchanged = [(count, 128, 13, 13), (count, 4608), (count, hidden // 2)]  # conv3, fc6, fc7
    expected = [(*direction, shape) for shape in exchanged for direction in directions]
    expected.append((GPU1, GPU0, (count, hidden // 2)))  # fc8
    assert Counter(copy[:3] for copy in tracer.copies) == Counter(expected)
    floats = 2 * 128 * 13 * 13 + 2 * 4608 + 3 * hidden // 2
    assert sum(copy.bytes for copy in tracer.copies) == 4 * count * floats


def test_all_tensors_of_a_tower_are_on_its_device() -> None:
    network = narrow_network(RECIPES["source145"])
    with shapes_only():
        assert place_towers(network, [GPU0, GPU1]) is network
    tensors = [*network.named_parameters(), *network.named_buffers()]
    assert len(tensors) == 2 * 2 * 7 + 2
    for prefix, device in (("towers.0.", GPU0), ("towers.1.", GPU1), ("fc8.", GPU0)):
        devices = [tensor.device for name, tensor in tensors if name.startswith(prefix)]
        assert devices
        assert set(devices) == {device}


def test_nothing_is_copied_on_one_device() -> None:
    network = narrow_network(RECIPES["paper"]).eval()
    with shapes_only():
        place_towers(network, [GPU1])
        with CopyTracer() as tracer:
            logits = network(torch.empty(2, 3, 224, 224, device=GPU1))
    assert logits.device == GPU1
    assert not tracer.copies


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"),
    reason="FakeTensorMode of older versions does not compare the devices of a convolution",
)
def test_crops_on_a_wrong_device_raise_an_error() -> None:
    network = narrow_network(RECIPES["paper"]).eval()
    with shapes_only():
        place_towers(network, [GPU0, GPU1])
        first, second = (torch.empty(2, 3, 224, 224, device=device) for device in (GPU0, GPU1))
        with pytest.raises(RuntimeError, match="device"):
            network(first, first)
        with pytest.raises(RuntimeError, match="device"):
            network(second, first)


def test_a_missing_copy_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow_network(RECIPES["paper"]).eval()
    with shapes_only():
        place_towers(network, [GPU0, GPU1])
        first, second = (torch.empty(2, 3, 224, 224, device=device) for device in (GPU0, GPU1))
        network(first, second)
        monkeypatch.setattr(towers, "copy_to", lambda parts, device: list(parts))
        with pytest.raises(RuntimeError, match="device"):
            network(first, second)


def test_the_number_of_inputs_must_be_one_or_that_of_the_towers() -> None:
    network = narrow_network(RECIPES["paper"]).eval()
    crops = torch.zeros(1, 3, 224, 224)
    with pytest.raises(ValueError, match="zip"):
        network(crops, crops, crops)


@pytest.mark.parametrize("devices", [[], [CPU, CPU, CPU]])
def test_the_number_of_devices_must_be_one_or_that_of_the_towers(
    devices: list[torch.device],
) -> None:
    network = narrow_network(RECIPES["paper"])
    with pytest.raises(ValueError, match=f"devices: {len(devices)}, towers: 2"):
        place_towers(network, devices)


def test_devices_per_tower() -> None:
    assert devices_per_tower([GPU1], 2) == [GPU1, GPU1]
    assert devices_per_tower([GPU1, GPU0], 2) == [GPU1, GPU0]
    assert devices_per_tower([GPU1], 1) == [GPU1]


def test_weights_of_towers_and_of_one_column_are_converted_without_loss() -> None:
    network = narrow_network(RECIPES["source145"])
    state = network.state_dict()
    grouped = to_grouped(state)
    assert {name: tuple(tensor.shape) for name, tensor in grouped.items() if "conv" in name} == {
        "conv1.weight": (96, 3, 11, 11),
        "conv1.bias": (96,),
        "conv2.weight": (256, 48, 5, 5),
        "conv2.bias": (256,),
        "conv3.weight": (384, 256, 3, 3),
        "conv3.bias": (384,),
        "conv4.weight": (384, 192, 3, 3),
        "conv4.bias": (384,),
        "conv5.weight": (256, 192, 3, 3),
        "conv5.bias": (256,),
    }
    restored = from_grouped(grouped, 2)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    grouped_again = to_grouped(restored)
    assert grouped_again.keys() == grouped.keys()
    assert all(torch.equal(grouped_again[name], grouped[name]) for name in grouped)


def test_from_grouped_copies_the_weights() -> None:
    grouped = to_grouped(narrow_network(RECIPES["paper"]).state_dict())
    split = from_grouped(grouped, 2)
    split["towers.0.conv1.weight"].zero_()
    assert grouped["conv1.weight"].abs().sum() > 0
    assert split["towers.1.conv1.weight"].is_contiguous()
