"""The registered model: an exported graph from bytes to probabilities, for any device and batch."""

import copy

import pytest
import torch
from factories import narrow_network, random_crops, relative_error
from torch.export import Dim, ExportedProgram, export

from alexnet.diagnostics.equivalence import he_init
from alexnet.errors import InvalidModelError
from alexnet.model.classifier import CropClassifier, average_models, view_probabilities
from alexnet.recipes import RECIPES

Exported = tuple[str, CropClassifier, ExportedProgram]


def classifier_of(recipe: str, seed: int = 0) -> CropClassifier:
    network = narrow_network(RECIPES[recipe], seed=seed)
    he_init(network, seed)
    with torch.no_grad():
        network.fc8.weight.mul_(0.2)  # Without this, one class would have probability 1.
    mean = 255 * torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(3))
    return CropClassifier(network.train(), mean)


@pytest.fixture(scope="module", params=[pytest.param("paper", marks=pytest.mark.slow), "source145"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """The name of a recipe, its classifier, and the classifier's graph."""
    classifier = classifier_of(request.param)
    crops = random_crops(3)
    program = export(classifier, (crops,), dynamic_shapes={"crops": {0: Dim.DYNAMIC}})
    return request.param, classifier, program


def test_probabilities_equal_a_float64_reference(exported: Exported) -> None:
    _, classifier, program = exported
    reference = copy.deepcopy(classifier.network).double().eval()
    crops = random_crops(4)
    inputs = crops.permute(0, 3, 1, 2).double() - classifier.mean.double()
    exponentials = reference(inputs).detach().exp()
    expected = exponentials / exponentials.sum(dim=1, keepdim=True)
    with torch.no_grad():
        probabilities = classifier(crops)
        of_graph = program.module()(crops)
    assert probabilities.dtype == torch.float32
    assert relative_error(expected[:1], expected[1:2]) > 0.01, "they depend on the image"
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4), rtol=0, atol=1e-6)
    assert torch.equal(of_graph, probabilities)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_exported_graph_takes_any_batch_size(exported: Exported, count: int) -> None:
    _, classifier, program = exported
    crops = random_crops(count)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(crops), classifier(crops))


def test_the_exported_graph_contains_no_device(exported: Exported) -> None:
    *_, program = exported
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) > 50
    for node in calls:
        assert "device" not in node.kwargs, node.target
        assert not any(isinstance(argument, torch.device) for argument in node.args), node.target
    names = [str(node.target) for node in calls]
    assert sum("softmax" in name for name in names) == 1
    assert "softmax" in names[-1], "the last operation returns probabilities"


def test_the_exported_graph_can_be_moved_to_another_device(exported: Exported) -> None:
    # Meta tensors replace those of a GPU. Operations on two devices would raise an error.
    module = exported[2].module()
    module.to("meta")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    assert {tensor.device.type for _, tensor in tensors} == {"meta"}
    constants = [node.target for node in module.graph.nodes if node.op == "get_attr"]
    assert set(constants) <= {name for name, _ in tensors}, "all tensors of the graph are moved"
    probabilities = module(random_crops(2).to("meta"))
    assert (probabilities.device.type, tuple(probabilities.shape)) == ("meta", (2, 4))


def test_a_classifier_is_in_evaluation_mode() -> None:
    classifier = classifier_of("paper")
    assert not any(module.training for module in classifier.modules())
    crops = random_crops(2)
    assert torch.equal(classifier(crops), classifier(crops))
    assert "mean" in classifier.state_dict()


def test_views_keep_their_order_and_models_are_averaged() -> None:
    classifiers = [classifier_of("paper", seed) for seed in (1, 2)]
    crops = random_crops(2)
    views = torch.stack([crops, crops.flip(2), crops.flip(1)])
    probabilities = view_probabilities(dict(zip("ab", classifiers, strict=True)), views)
    assert (tuple(probabilities.shape), probabilities.requires_grad) == ((3, 2, 4), False)
    with torch.no_grad():
        for number, view in enumerate(views):
            expected = (classifiers[0](view).double() + classifiers[1](view).double()) / 2
            torch.testing.assert_close(probabilities[number].double(), expected, rtol=0, atol=1e-6)


def test_the_average_is_weighted() -> None:
    by_model = torch.rand((2, 3, 4), generator=torch.Generator().manual_seed(0))
    for weights in (None, [1, 1]):
        torch.testing.assert_close(average_models(by_model, weights), by_model.mean(dim=0))
    expected = 0.25 * by_model[0] + 0.75 * by_model[1]
    torch.testing.assert_close(average_models(by_model, [0.25, 0.75]), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(average_models(by_model, [0.1, 0.3]), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("broken", ["weights", "one image"])
def test_a_classifier_that_outputs_nan_is_an_error_that_names_it(broken: str) -> None:
    class NotANumber(torch.nn.Module):
        """NaN for all images, or for those whose first pixel is black."""

        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            black = crops[:, 0, 0, 0] == 0
            nan = black if broken == "one image" else torch.ones_like(black)
            return torch.full((len(crops), 4), 0.25).masked_fill(nan[:, None], torch.nan)

    classifiers = {"models:/good": classifier_of("paper"), "models:/bad": NotANumber()}
    views = torch.full((2, 3, 224, 224, 3), 200, dtype=torch.uint8)
    views[1, 2] = 0
    with pytest.raises(InvalidModelError, match=r"^models:/bad: outputs NaN") as caught:
        view_probabilities(classifiers, views)
    assert "\n" not in str(caught.value)


def test_a_network_whose_weights_are_nan_is_an_error() -> None:
    classifier = classifier_of("paper")
    with torch.no_grad():
        next(classifier.parameters()).fill_(torch.nan)
    with pytest.raises(InvalidModelError, match="models:/m-1"):
        view_probabilities({"models:/m-1": classifier}, random_crops(2)[None])
