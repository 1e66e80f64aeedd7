"""Recognize the weights in a file by its first bytes, and put weights into a network."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alexnet.errors import UserError
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import from_grouped, to_grouped
from alexnet.recipes import Recipe
from alexnet.training.checkpoint import check_architecture, read_mean, read_network
from alexnet.weights.caffe import read_caffe
from alexnet.weights.cuda_convnet import read_cuda_convnet
from alexnet.weights.one_column import OneColumn
from alexnet.weights.torchvision import read_torchvision

_ORDER = ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8")

_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Files of ``torch.save``, new and old."""
_PICKLE = (b"\x80", b"(dp", b"(lp")


class Fitted(NamedTuple):
    """The part of some weights that a network can begin with."""

    weights: Mapping[str, Tensor]
    """By the names of the parameters of ``AlexNet``."""
    used: tuple[str, ...]
    """Layers that have them."""
    drawn: tuple[str, ...]
    """Layers whose weights are drawn, as in a training from the beginning."""


def read_file(path: str, content: bytes) -> OneColumn:
    """The weights in a file of another program.

    Raises:
        UserError: the file is damaged, or none of the kinds that can be read.
    """
    if content.startswith((_ZIP, _OLD_TORCH)):
        return read_torchvision(path, content)
    if content.startswith(_PICKLE):
        return read_cuda_convnet(path, content)
    return read_caffe(path, content)


def read_checkpoint(folder: str, recipe: Recipe) -> OneColumn:
    """The weights of a local checkpoint of this project, averaged ones if there are any.

    Raises:
        UserError: it is damaged, or its network is another function than the recipe's.
    """
    tensors = to_grouped(read_network(folder))
    check_architecture(folder, recipe)
    return OneColumn(
        kind="a checkpoint",
        tensors={name: tensor.clone() for name, tensor in tensors.items()},
        mean=read_mean(folder),
    )


def fit(path: str, weights: OneColumn, recipe: Recipe, classes: int) -> Fitted:
    """Choose the layers that a network can use: all before the first that differs.

    A layer that only one of both has (conv6), and fc8 of another number of classes, differ. What is
    after such a layer has learned from other activations, so it is drawn as well.

    Args:
        path: of the weights, for messages.
        weights: that were read.
        recipe: of the network.
        classes: of the network.

    Raises:
        UserError: a layer that both have has other shapes.
    """
    with torch.device("meta"):
        network: nn.Module = GroupedAlexNet(asdict(recipe), classes)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.named_parameters()}
    layers = [layer for layer in _ORDER if f"{layer}.weight" in shapes]
    used: list[str] = []
    for layer in _ORDER:
        names = [f"{layer}.{kind}" for kind in ("weight", "bias")]
        theirs = [tuple(weights.tensors[name].shape) for name in names if name in weights.tensors]
        ours = [shapes[name] for name in names if name in shapes]
        if theirs == ours:
            used += [layer] * bool(ours)
        elif layer == "fc8" or not theirs or not ours:
            break
        else:
            raise UserError(_difference(path, weights, recipe, layer, theirs[0], ours[0]))
    if not used:
        raise UserError(f"{path}: {weights.kind} without a layer conv1")
    column = {
        name: tensor.contiguous()
        for name, tensor in weights.tensors.items()
        if name.partition(".")[0] in used
    }
    drawn = tuple(layer for layer in layers if layer not in used)
    return Fitted(from_grouped(column, recipe.towers), tuple(used), drawn)


def _difference(
    path: str,
    weights: OneColumn,
    recipe: Recipe,
    layer: str,
    theirs: tuple[int, ...],
    ours: tuple[int, ...],
) -> str:
    shapes = f"{layer}'s weights are {_times(theirs)}, this network's are {_times(ours)}"
    remedy = ""
    if weights.recipe and weights.recipe != recipe.name:
        remedy = f"; the recipe {weights.recipe} has this file's network"
    return f"{path}: {weights.kind} of another network ({shapes}){remedy}"


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
