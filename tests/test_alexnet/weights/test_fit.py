"""Which layers of some weights a network begins with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import narrow_network

from alexnet.errors import UserError
from alexnet.later_recipes import CAFFE
from alexnet.recipes import SOURCE145, Recipe, ablate
from alexnet.training.checkpoint import TrainState, save_checkpoint, take_snapshot
from alexnet.training.optimizer import build_optimizer
from alexnet.variants import with_conv6
from alexnet.weights.read import Fitted, fit, read_checkpoint

MEAN = torch.rand(3, 224, 224)
NARROW = replace(SOURCE145, hidden=48)
CONV6 = with_conv6(NARROW, pretrained=True)
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def fitted(recipe: Recipe, folder: Path, to: Recipe, classes: int = 4) -> Fitted:
    """The weights of a checkpoint of one network, with four classes, for another."""
    network = narrow_network(recipe)
    average = {name: p.detach() + 1 for name, p in network.named_parameters()}
    snapshot = take_snapshot(
        network, build_optimizer(network, recipe), TrainState(step=1), MEAN, average
    )
    save_checkpoint(str(folder), snapshot)
    weights = read_checkpoint(str(folder), to)
    assert weights.mean is not None
    assert torch.equal(weights.mean, MEAN)
    found = fit(str(folder), weights, to, classes)
    assert all(torch.equal(tensor, average[name]) for name, tensor in found.weights.items())
    assert {name.split(".")[-2] for name in found.weights} == set(found.used)
    return found


def test_the_same_network_has_all_weights_the_averaged_ones(tmp_path: Path) -> None:
    found = fitted(NARROW, tmp_path, NARROW)
    assert (found.used, found.drawn) == ((*CONVOLUTIONS, "fc6", "fc7", "fc8"), ())
    assert len(found.weights) == 2 * 14 + 2


def test_the_last_layer_of_other_classes_is_drawn(tmp_path: Path) -> None:
    found = fitted(CONV6, tmp_path, CONV6, classes=7)
    assert (found.used, found.drawn) == ((*CONVOLUTIONS, "conv6", "fc6", "fc7"), ("fc8",))


def test_a_new_convolution_and_the_layers_after_it_are_drawn(tmp_path: Path) -> None:
    """As net 146 began with conv1 to conv5 of net 145."""
    found = fitted(NARROW, tmp_path, CONV6)
    assert (found.used, found.drawn) == (CONVOLUTIONS, ("conv6", "fc6", "fc7", "fc8"))


def test_a_convolution_that_is_left_out(tmp_path: Path) -> None:
    found = fitted(CONV6, tmp_path, NARROW)
    assert (found.used, found.drawn) == (CONVOLUTIONS, ("fc6", "fc7", "fc8"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ablate(NARROW, towers=1), "conv1's weights are 96x3x11x11, this network's are 48x3x11x11"),
        (replace(NARROW, hidden=64), "fc6's weights are 48x9216, this network's are 64x9216"),
        (ablate(NARROW, normalization=False), "belongs to another network (cross_map is"),
        (replace(CAFFE, hidden=48), "belongs to another network (cross_map is"),
    ],
)
def test_another_network_is_an_error(tmp_path: Path, other: Recipe, words: str) -> None:
    with pytest.raises(UserError) as caught:
        fitted(NARROW, tmp_path, other)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the checkpoint can't be read"):
        read_checkpoint(str(tmp_path), NARROW)
