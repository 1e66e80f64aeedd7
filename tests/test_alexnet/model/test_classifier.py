"""What is registered: a graph from bytes to probabilities that fits any device and batch."""

import pytest
import torch
from factories import he_init, narrow_network, relative_error
from reference_model import Twin
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from alexnet.model.classifier import CropClassifier, view_probabilities
from alexnet.model.placement import to_single
from alexnet.model.towers import AlexNet
from alexnet.recipes import RECIPES


def bytes_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8, generator=generator)


def classifier_of(recipe: str, seed: int = 0) -> CropClassifier:
    network = narrow_network(RECIPES[recipe], seed=seed)
    he_init(network, seed)
    with torch.no_grad():
        network.fc8.weight.mul_(0.2)  # Or one class would have all the probability.
    mean = 255 * torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(3))
    return CropClassifier(network.train(), mean)


@pytest.fixture(scope="module", params=RECIPES)
def exported(request: pytest.FixtureRequest) -> tuple[str, CropClassifier, ExportedProgram]:
    classifier = classifier_of(request.param)
    program = export(classifier, (bytes_of(3),), dynamic_shapes={"patches": {0: Dim.DYNAMIC}})
    return request.param, classifier, program


def test_probabilities_equal_a_float64_reference(
    exported: tuple[str, CropClassifier, ExportedProgram],
) -> None:
    recipe, classifier, program = exported
    network = classifier.network
    assert isinstance(network, AlexNet)
    twin = Twin(recipe, 4, kept=0.5, width=48).double()
    twin.load_state_dict({name: t.double() for name, t in to_single(network.state_dict()).items()})
    patches = bytes_of(4)
    inputs = patches.permute(0, 3, 1, 2).double() - classifier.mean.double()
    exponentials = twin(inputs).detach().exp()
    expected = exponentials / exponentials.sum(dim=1, keepdim=True)
    with torch.no_grad():
        found = classifier(patches)
        again = program.module()(patches)
    assert found.dtype == torch.float32
    assert relative_error(expected[:1], expected[1:2]) > 0.01, "the images are felt"
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4), rtol=0, atol=1e-6)
    assert torch.equal(again, found)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_exported_graph_takes_any_batch(
    exported: tuple[str, CropClassifier, ExportedProgram], count: int
) -> None:
    _, classifier, program = exported
    patches = bytes_of(count)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(patches), classifier(patches))


def test_the_exported_graph_names_no_device(
    exported: tuple[str, CropClassifier, ExportedProgram],
) -> None:
    *_, program = exported
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) > 50
    for node in calls:
        assert "device" not in node.kwargs, node.target
        assert not any(isinstance(argument, torch.device) for argument in node.args), node.target
    names = [str(node.target) for node in calls]
    assert sum("softmax" in name for name in names) == 1
    assert "softmax" in names[-1], "probabilities come last"


def test_the_exported_graph_moves_to_another_device(
    exported: tuple[str, CropClassifier, ExportedProgram],
) -> None:
    # Meta tensors stand for a GPU's: nothing may stay behind or be sent back.
    module = exported[2].module()
    module.to("meta")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    assert {tensor.device.type for _, tensor in tensors} == {"meta"}
    fetched = [node.target for node in module.graph.nodes if node.op == "get_attr"]
    assert set(fetched) <= {name for name, _ in tensors}, "all tensors of the graph were moved"
    probabilities = module(bytes_of(2).to("meta"))
    assert (probabilities.device.type, tuple(probabilities.shape)) == ("meta", (2, 4))


def test_a_classifier_is_in_testing_mode() -> None:
    classifier = classifier_of("paper")
    assert not any(module.training for module in classifier.modules())
    patches = bytes_of(2)
    assert torch.equal(classifier(patches), classifier(patches))
    assert "mean" in classifier.state_dict()


def test_views_keep_their_places_and_models_are_averaged() -> None:
    classifiers = [classifier_of("paper", seed) for seed in (1, 2)]
    views = torch.stack([bytes_of(2), bytes_of(2).flip(2), bytes_of(2).flip(1)])
    found = view_probabilities(list(classifiers), views)
    assert (tuple(found.shape), found.requires_grad) == ((3, 2, 4), False)
    with torch.no_grad():
        for number, view in enumerate(views):
            expected = (classifiers[0](view).double() + classifiers[1](view).double()) / 2
            torch.testing.assert_close(found[number].double(), expected, rtol=0, atol=1e-6)
