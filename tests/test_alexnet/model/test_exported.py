"""An exported classifier run node by node: the same probabilities, features, bfloat16."""

from collections.abc import Iterator

import factories
import pytest
import torch
from torch import Tensor, fx, nn

from alexnet.errors import UserError
from alexnet.model.classifier import CropClassifier
from alexnet.model.exported import Layer, as_function
from alexnet.recipes import SOURCE145


@pytest.fixture(scope="module")
def classifier() -> CropClassifier:
    network = factories.narrow_network(SOURCE145)
    return CropClassifier(network, torch.full((3, 224, 224), 110.0))


@pytest.fixture(scope="module")
def exported(classifier: CropClassifier) -> fx.GraphModule:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        classifier, (factories.random_crops(2),), dynamic_shapes=({0: batch},)
    )
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_features_are_what_the_next_layer_reads(
    classifier: CropClassifier, exported: fx.GraphModule, layer: Layer
) -> None:
    crops = factories.random_crops(3)
    read: list[Tensor] = []
    name = "fc8" if layer == "fc7" else "towers.0.fc7"
    following = classifier.network.get_submodule(name)
    hook = following.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    expected = classifier(crops)
    hook.remove()
    outputs = as_function(exported, "m", layer, precision="float32")(crops)
    assert outputs.features is not None
    torch.testing.assert_close(outputs.features, read[0])
    torch.testing.assert_close(outputs.probabilities, expected)


def test_bfloat16_is_close_to_float32_and_not_the_same(exported: fx.GraphModule) -> None:
    crops = factories.random_crops(4)
    exact = as_function(exported, "m", "fc7", precision="float32")(crops).features
    rounded = as_function(exported, "m", "fc7", precision="bf16")(crops).features
    assert exact is not None
    assert rounded is not None
    assert rounded.dtype == torch.float32
    assert 1e-5 < factories.relative_error(rounded, exact) < 0.05


def test_what_is_no_graph_of_this_network_has_no_features(exported: fx.GraphModule) -> None:
    with pytest.raises(UserError, match="m: not an exported graph"):
        as_function(nn.Identity(), "m", "fc7", precision="float32")
    with pytest.raises(UserError, match="m: has no layer fc7"):
        as_function(fx.symbolic_trace(nn.Linear(2, 2)), "m", "fc7", precision="float32")
