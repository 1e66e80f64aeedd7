"""Where the towers lie and what crosses between them, on devices that need not exist.

Fake tensors know their device and shape but hold no data; an operation on tensors of two devices
fails with them as it would on real GPUs.
"""

from collections import Counter

import pytest
import torch
from factories import narrow_network
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet.diagnostics.copies import CopyTracer
from alexnet.model import towers
from alexnet.model.placement import from_single, place_towers, spread, to_single
from alexnet.model.towers import AlexNet
from alexnet.recipes import RECIPES

CPU, GPU0, GPU1 = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


def fake_devices() -> FakeTensorMode:
    """Inside, ``place`` turns real weights on the CPU into fake ones on the devices it is given."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def wide_network() -> AlexNet:
    return AlexNet(RECIPES["source145"], 1000)


@pytest.mark.parametrize("gradients", [True, False])
def test_only_the_four_meetings_cross(gradients: bool) -> None:
    count = 3
    network = wide_network()
    with fake_devices(), torch.set_grad_enabled(gradients):
        place_towers(network, [GPU0, GPU1])
        patches = [torch.empty(count, 3, 224, 224, device=device) for device in (GPU0, GPU1)]
        with CopyTracer() as crossings:
            logits = network(*patches)
    assert (logits.device, tuple(logits.shape)) == (GPU0, (count, 1000))
    there, back = (GPU0, GPU1), (GPU1, GPU0)
    both_ways = [(count, 128, 13, 13), (count, 4608), (count, 2048)]  # conv3, fc6, fc7
    expected = [(*way, shape) for shape in both_ways for way in (there, back)]
    expected.append((*back, (count, 2048)))  # fc8
    assert Counter(crossing[:3] for crossing in crossings.found) == Counter(expected)
    floats = 2 * 128 * 13 * 13 + 2 * 4608 + 2 * 2048 + 2048
    assert sum(crossing.bytes for crossing in crossings.found) == 4 * count * floats


def test_everything_of_a_tower_lies_on_its_device() -> None:
    network = wide_network()
    with fake_devices():
        assert place_towers(network, [GPU0, GPU1]) is network
    for prefix, device in (("towers.0.", GPU0), ("towers.1.", GPU1), ("fc8.", GPU0)):
        tensors = [*network.named_parameters(), *network.named_buffers()]
        mine = [tensor for name, tensor in tensors if name.startswith(prefix)]
        assert mine
        assert {tensor.device for tensor in mine} == {device}
    assert len(tensors) == 2 * 2 * 7 + 2


def test_nothing_crosses_on_one_device() -> None:
    network = narrow_network(RECIPES["paper"])
    with fake_devices():
        place_towers(network, [GPU1])
        with CopyTracer() as crossings:
            logits = network(torch.empty(2, 3, 224, 224, device=GPU1))
    assert logits.device == GPU1
    assert not crossings.found


def test_a_missing_copy_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow_network(RECIPES["paper"])
    with fake_devices():
        place_towers(network, [GPU0, GPU1])
        first, second = (torch.empty(2, 3, 224, 224, device=device) for device in (GPU0, GPU1))
        network(first, second)
        with pytest.raises(RuntimeError, match="device"):
            network(first, first)
        with pytest.raises(RuntimeError, match="device"):
            network(second, first)
        monkeypatch.setattr(towers, "_gather", lambda parts, device: torch.cat(list(parts), dim=1))
        with pytest.raises(RuntimeError, match="device"):
            network(first, second)


def test_one_batch_is_needed_for_each_tower() -> None:
    network = narrow_network(RECIPES["paper"])
    patches = torch.zeros(1, 3, 224, 224)
    with pytest.raises(ValueError, match="zip"):
        network(patches, patches, patches)


@pytest.mark.parametrize("devices", [[], [CPU, CPU, CPU]])
def test_other_numbers_of_devices_are_refused(devices: list[torch.device]) -> None:
    network = narrow_network(RECIPES["paper"])
    with pytest.raises(ValueError, match=f"devices: {len(devices)}, towers: 2"):
        place_towers(network, devices)


def test_spread() -> None:
    assert spread([GPU1], 2) == [GPU1, GPU1]
    assert spread([GPU1, GPU0], 2) == [GPU1, GPU0]
    assert spread([GPU1], 1) == [GPU1]


def test_the_column_and_the_towers_turn_into_each_other() -> None:
    network = narrow_network(RECIPES["source145"])
    state = network.state_dict()
    single = to_single(state)
    assert {name: tuple(tensor.shape) for name, tensor in single.items() if "conv" in name} == {
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
    again = from_single(single, 2)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    twice = to_single(again)
    assert twice.keys() == single.keys()
    assert all(torch.equal(twice[name], single[name]) for name in single)


def test_the_column_shares_no_memory_with_a_cut_one() -> None:
    single = to_single(narrow_network(RECIPES["paper"]).state_dict())
    cut = from_single(single, 2)
    cut["towers.0.conv1.weight"].zero_()
    assert single["conv1.weight"].abs().sum() > 0
    assert cut["towers.1.conv1.weight"].is_contiguous()
