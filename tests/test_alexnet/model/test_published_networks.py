"""The network and its ablations against the authors' own descriptions of them.

The fully connected layers are narrow, unless the test is slow; all convolutions have their width.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import random_inputs, relative_error
from published_networks import (
    NET_145,
    NET_145_HALF,
    NET_146,
    NET_147,
    NET_148,
    PAPER,
    Layer,
    Parameters,
    Results,
    read,
    run,
)
from torch import Tensor

from alexnet import recipes
from alexnet.diagnostics.equivalence import he_init
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145, ablate
from alexnet.variants import with_conv6

CLASSES, LABEL = 10, 3
NETWORKS = {
    "paper": (PAPER, recipes.PAPER),
    "145": (NET_145, SOURCE145),
    "145-half": (NET_145_HALF, ablate(SOURCE145, towers=1)),
    "146": (NET_146, with_conv6(SOURCE145, pretrained=True)),
    "147": (NET_147, ablate(SOURCE145, overlapping_pooling=False)),
    "148": (NET_148, ablate(SOURCE145, normalization=False)),
}
"""The description and the recipe of each."""


def our_name(layer: str) -> str:
    """The layer's name in this project: fc2048ba → towers.0.fc7."""
    match = re.fullmatch(r"(conv\d|fc\d{4}b?)([ab])", layer)
    if match is None:
        return {"fc1000": "fc8"}[layer]
    kind, tower = match.groups()
    if kind.startswith("fc"):
        kind = "fc7" if kind.endswith("b") else "fc6"
    return f"towers.{'ab'.index(tower)}.{kind}"


def in_order_of_the_row(layer: Layer, weights: Tensor) -> Tensor:
    """Weights whose inputs are in our order, the first tower's first → in that of the row."""
    parts = weights.chunk(len(layer.inputs), dim=1)
    order = sorted(range(len(parts)), key=lambda index: layer.inputs[index])
    return torch.cat([parts[index] for index in order], dim=1)


def arrays(layer: Layer, tensors: Mapping[str, Tensor]) -> Parameters:
    """Weights and biases (or their gradients) of a layer, as the interpreter has them."""
    name = our_name(layer.name)
    weights = in_order_of_the_row(layer, tensors[f"{name}.weight"].detach())
    return weights.numpy(), tensors[f"{name}.bias"].detach().numpy()


def compare(name: str, hidden: int) -> Results:
    """Compare the logits of one image and the gradients of all layers; returns the expected."""
    description, recipe = NETWORKS[name]
    network = AlexNet(replace(recipe, hidden=hidden), CLASSES).double().eval()
    he_init(network)
    parameters = dict(network.named_parameters())
    crops = random_inputs(1, dtype=torch.float64)
    logits = network(crops)
    loss = F.cross_entropy(logits, torch.tensor([LABEL]))
    values = torch.autograd.grad(loss, list(parameters.values()))
    gradients = dict(zip(parameters, values, strict=True))

    layers = read(description)
    weights = {one.name: arrays(one, parameters) for one in layers if "initW" in one.numbers}
    expected = run(layers, weights, crops.numpy(), [LABEL])
    assert relative_error(logits, torch.from_numpy(expected.logits)) < 1e-12
    assert len(expected.gradients) == len(gradients) / 2 == len(weights)
    for layer in layers:
        if layer.name in weights:
            pairs = zip(arrays(layer, gradients), expected.gradients[layer.name], strict=True)
            for ours, gradient in pairs:
                assert np.any(gradient), layer.name
                error = relative_error(torch.from_numpy(ours), torch.from_numpy(gradient))
                assert error < 1e-12, layer.name
    return expected


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_equal_those_of_the_description(name: str) -> None:
    sizes = compare(name, hidden=48).sizes
    layers = ("conv1a", "pool1a", "conv2a", "pool2a", "conv4a", "conv5a", "pool3a")
    widths = (55, 28, 26, 13, 13, 11, 6) if name == "147" else (55, 27, 27, 13, 13, 13, 6)
    assert tuple(sizes[layer] for layer in layers) == widths


@pytest.mark.slow
def test_the_full_network_equals_its_description() -> None:
    compare("145", hidden=4096)


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_and_initial_values_of_the_description(name: str) -> None:
    description, recipe = NETWORKS[name]
    with torch.device("meta"):
        parameters = dict(AlexNet(recipe, 1000).named_parameters())
    layers = [layer for layer in read(description) if "initW" in layer.numbers]
    assert len(parameters) == 2 * len(layers)
    for layer in layers:
        path, numbers = our_name(layer.name), layer.numbers
        kind = path.split(".")[-1]
        (width,) = parameters[f"{path}.bias"].shape
        assert width == numbers.get("filters", numbers.get("outputs"))
        assert recipe.weight_std[kind] == numbers["initW"], layer.name
        assert (kind in recipe.ones) == (numbers.get("initB", 0.0) == 1.0), layer.name
