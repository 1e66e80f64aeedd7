"""Activations, dead units and norms of gradients agree with the network's own computation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import narrow_network, random_inputs

from alexnet.diagnostics.layers import CONVOLUTIONS, HIDDEN_LAYERS, activations, gradient_norms
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, SOURCE145, Recipe


def weights(network: AlexNet) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("recipe", [PAPER, SOURCE145])
def test_activations_are_those_of_the_network(recipe: Recipe) -> None:
    network = narrow_network(recipe, 4).eval()
    inputs = random_inputs(3)
    state = torch.get_rng_state()
    found = activations(weights(network), network.recipe, 4, inputs)
    assert torch.equal(torch.get_rng_state(), state), "a training beside it keeps its numbers"
    assert tuple(found.maps) == CONVOLUTIONS
    assert [maps.shape for maps in found.maps["conv1"]] == [(48, 55, 55)] * 2
    first = network.get_submodule("towers.1.conv1")(F.pad(inputs[:1], (0, 3, 0, 3))).relu()[0]
    assert torch.equal(torch.from_numpy(found.maps["conv1"][1]), first.detach())
    assert all((maps >= 0).all() for layer in found.maps.values() for maps in layer)


def test_a_unit_that_no_image_activates_is_dead() -> None:
    network = narrow_network(SOURCE145, 4)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(1e9)
        network.get_parameter("towers.0.conv2.bias")[:32] = -1e9
        network.get_parameter("towers.1.fc6.bias").fill_(-1e20)
    found = activations(weights(network), network.recipe, 4, random_inputs(4))
    assert tuple(found.dead) == HIDDEN_LAYERS
    assert found.dead["conv2"] == [25.0, 0.0]
    assert found.dead["fc6"][1] == 100.0


def test_norms_are_those_of_the_last_gradient() -> None:
    network = narrow_network(replace(SOURCE145, dropout=0.0), 4)
    assert gradient_norms(network) == {}
    F.cross_entropy(network(random_inputs(4)), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    norms = gradient_norms(network)
    assert list(norms) == [*HIDDEN_LAYERS, "fc8"]
    assert len(norms["fc8"]) == 1
    gradient = network.get_parameter("towers.1.conv3.weight").grad
    assert gradient is not None
    assert norms["conv3"][1] == pytest.approx(float(gradient.square().sum().sqrt()), rel=1e-4)
