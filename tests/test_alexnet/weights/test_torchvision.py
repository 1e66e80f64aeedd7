"""torchvision's own network and ours with its weights."""

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import relative_error
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.later_recipes import TORCHVISION
from alexnet.model.placement import to_grouped
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145
from alexnet.weights.read import fit, read_file
from alexnet.weights.torchvision import to_torchvision

models = pytest.importorskip("torchvision.models")
HIDDEN, CLASSES = 48, 5


def theirs(hidden: int = HIDDEN, classes: int = CLASSES) -> nn.Module:
    """torchvision's network, with fewer hidden units."""
    torch.manual_seed(0)
    network: Any = models.alexnet(num_classes=classes) if hidden == 4096 else models.alexnet()
    if hidden != 4096:
        network.classifier[1] = nn.Linear(9216, hidden)
        network.classifier[4] = nn.Linear(hidden, hidden)
        network.classifier[6] = nn.Linear(hidden, classes)
    return network.eval()  # type: ignore[no-any-return]


def saved(state: object, **options: Any) -> bytes:
    buffer = BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def normalized(crops: Tensor) -> Tensor:
    """As torchvision's transforms make them of pixels in the 0-255 range."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (crops / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)


def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 224, 224), generator=generator).double()


def compare(network: nn.Module, hidden: int, content: bytes) -> None:
    recipe = replace(TORCHVISION, hidden=hidden)
    weights = read_file("net.pth", content)
    fitted = fit("net.pth", weights, recipe, CLASSES)
    assert fitted.drawn == ()
    ours = AlexNet(recipe, CLASSES).eval()
    ours.load_state_dict(dict(fitted.weights))
    assert weights.mean is not None
    with torch.no_grad():
        logits = ours.double()(pixels() - weights.mean)
        expected = network.double()(normalized(pixels()))
    # The weights are scaled in float32.
    assert relative_error(logits, expected) < 1e-6
    back = to_torchvision(to_grouped(fitted.weights), weights.mean)
    for name, tensor in network.state_dict().items():
        assert relative_error(back[name], tensor) < 1e-6


@pytest.mark.parametrize("zip_file", [True, False])
def test_the_network_computes_what_torchvisions_does(zip_file: bool) -> None:
    network = theirs()
    content = saved(network.state_dict(), _use_new_zipfile_serialization=zip_file)
    compare(network, HIDDEN, content)


@pytest.mark.slow
def test_the_full_network_computes_what_torchvisions_does() -> None:
    network = theirs(4096)
    compare(network, 4096, saved(network.state_dict()))


def test_a_constant_difference_of_the_mean_is_in_the_bias() -> None:
    network = theirs()
    weights = read_file("net.pth", saved(network.state_dict()))
    assert weights.mean is not None
    state = to_torchvision(weights.tensors, weights.mean + 7)
    shifted = theirs()
    shifted.load_state_dict(state)
    # Ours subtracts 7 more from each pixel. Zeros at the border are not shifted.
    inside = pixels() - 7
    with torch.no_grad():
        first = shifted.get_submodule("features.0").double()(normalized(pixels()))
        second = network.get_submodule("features.0").double()(normalized(inside))
    assert relative_error(first[:, :, 1:-1, 1:-1], second[:, :, 1:-1, 1:-1]) < 1e-6


def test_the_network_of_2012_refuses_it_and_names_the_recipe() -> None:
    weights = read_file("net.pth", saved(theirs().state_dict()))
    with pytest.raises(UserError) as caught:
        fit("net.pth", weights, replace(SOURCE145, hidden=HIDDEN), CLASSES)
    assert str(caught.value) == (
        "net.pth: torchvision's alexnet of another network (conv1's weights are 64x3x11x11, this "
        "network's are 96x3x11x11); the recipe torchvision has this file's network"
    )


class Hostile:
    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zip_file", [True, False])
def test_bad_files_are_one_line_and_nothing_is_executed(tmp_path: Path, zip_file: bool) -> None:
    proof = tmp_path / "executed"
    good = saved(theirs().state_dict(), _use_new_zipfile_serialization=zip_file)
    hostile = saved(
        {"features.0.weight": Hostile(os.system, f"touch {proof}")},
        _use_new_zipfile_serialization=zip_file,
    )
    other = saved({"weight": torch.zeros(2)}, _use_new_zipfile_serialization=zip_file)
    a_list = saved([1, 2], _use_new_zipfile_serialization=zip_file)
    for bad in (good[:3000], good[: len(good) // 2], hostile, other, a_list):
        with pytest.raises(UserError, match=r"^net\.pth: not a [^\n]*$"):
            read_file("net.pth", bad)
    assert not proof.exists()
