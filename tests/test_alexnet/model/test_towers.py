"""The two towers against one column with groups, and the network's numbers."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import he_init, narrow_network, relative_error
from reference_model import Twin
from torch import Tensor

from alexnet.model.placement import to_single
from alexnet.model.towers import AlexNet, Dropout, Tower, initialize
from alexnet.recipes import LAYERS, RECIPES

CLASSES = 10


@pytest.fixture(scope="module", params=RECIPES)
def network(request: pytest.FixtureRequest) -> tuple[str, AlexNet]:
    """A recipe and its network of full width, initialized with seed 7."""
    model = AlexNet(RECIPES[request.param], CLASSES)
    initialize(model, RECIPES[request.param], seed=7)
    return request.param, model.eval()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    patches = 70 * torch.randn((2, 3, 224, 224), generator=generator)
    return patches, torch.tensor([3, 8])


def gradients_of(model: torch.nn.Module, patches: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(model(patches), labels)
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def compare(model: AlexNet, twin: Twin, dtype: torch.dtype, bound: float) -> None:
    """Outputs and all gradients."""
    he_init(model.to(dtype))
    twin.to(dtype).load_state_dict(to_single(model.state_dict()))
    patches, labels = batch()
    patches = patches.to(dtype)
    logits, expected = model(patches), twin(patches)
    assert relative_error(logits[:1], logits[1:]) > 0.1, "the images are felt"
    assert relative_error(logits, expected) < bound
    assert relative_error(model(patches, patches), expected) < bound
    ours = to_single(gradients_of(model, patches, labels))
    theirs = gradients_of(twin, patches, labels)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert gradient.norm() > 0, name
        assert relative_error(ours[name], gradient) < bound, name


def test_towers_equal_one_column_with_groups(network: tuple[str, AlexNet]) -> None:
    recipe, initialized = network
    model = copy.deepcopy(initialized)
    compare(model, Twin(recipe, CLASSES, kept=0.5), torch.float32, 1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("training", [True, False])
def test_they_are_equal_to_the_last_digits(recipe: str, training: bool) -> None:
    without_dropout = replace(RECIPES[recipe], dropout=0.0)
    model = narrow_network(without_dropout if training else RECIPES[recipe], CLASSES)
    twin = Twin(recipe, CLASSES, kept=1.0 if training else 0.5, width=48)
    compare(model.train(training), twin, torch.float64, 1e-12)


def test_recipes_differ_as_functions() -> None:
    models = [narrow_network(recipe).eval() for recipe in RECIPES.values()]
    he_init(models[0])
    models[1].load_state_dict(models[0].state_dict())
    patches, _ = batch()
    first, second = (model(patches) for model in models)
    assert relative_error(first, second) > 0.1


def test_number_of_parameters() -> None:
    model = AlexNet(RECIPES["paper"], 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 60_965_224


def test_shapes_along_the_way() -> None:
    model = narrow_network(RECIPES["source145"]).eval()
    tower = model.towers[0]
    assert isinstance(tower, Tower)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in tower.named_children():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    assert model(batch()[0]).shape == (2, 4)
    assert shapes["conv1"] == (2, 48, 55, 55)
    assert shapes["conv2"] == (2, 128, 27, 27)
    assert shapes["conv3"] == (2, 192, 13, 13)
    assert shapes["conv4"] == (2, 192, 13, 13)
    assert shapes["conv5"] == (2, 128, 13, 13)
    assert tower.fc6.in_features == 2 * 128 * 6 * 6


def test_the_zeros_lie_right_and_below() -> None:
    model = narrow_network(RECIPES["paper"]).eval()
    tower = model.towers[1]
    assert isinstance(tower, Tower)
    outputs: list[Tensor] = []
    tower.conv1.register_forward_hook(lambda _, inputs, output: outputs.append(output.detach()))
    patches, _ = batch()
    model(patches)
    image = patches[0].double().numpy()
    kernels = tower.conv1.weight.detach().double().numpy()
    found = outputs[0][0].double().numpy()
    # The first position sees the first 11 rows and columns; the last one only the last 8.
    first = np.einsum("chw,kchw->k", image[:, :11, :11], kernels)
    last = np.einsum("chw,kchw->k", image[:, 216:, 216:], kernels[:, :, :8, :8])
    np.testing.assert_allclose(found[:, 0, 0], first, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[:, 54, 54], last, rtol=1e-3, atol=1e-3)


def test_initial_values(network: tuple[str, AlexNet]) -> None:
    recipe, model = network
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    seen = set()
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        seen.add(layer)
        values = parameter.detach().double()
        if kind == "bias":
            assert torch.all(values == (1.0 if layer in ones else 0.0)), name
            continue
        wide = recipe == "source145" and layer in {"conv3", "conv4", "conv5"}
        std, count = (0.03 if wide else 0.01), values.numel()
        assert abs(values.mean()) < 5 * std / count**0.5, name
        assert abs(values.std() / std - 1) < 5 / (2 * count) ** 0.5, name
        # Gaussian, not uniform: the fourth moment is three times the variance squared.
        assert abs((values / std).pow(4).mean() - 3) < 5 * (96 / count) ** 0.5, name
    assert seen == set(LAYERS)


def test_towers_start_differently() -> None:
    model = narrow_network(RECIPES["source145"])
    first, second = (dict(tower.named_parameters()) for tower in model.towers)
    for name in first:
        if name.endswith("weight"):
            correlation = np.corrcoef(
                first[name].detach().flatten().numpy(), second[name].detach().flatten().numpy()
            )[0, 1]
            assert abs(correlation) < 5 / first[name].numel() ** 0.5, name


def test_initialization_depends_on_its_seed_alone() -> None:
    recipe = RECIPES["paper"]
    model = narrow_network(recipe, seed=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    initialize(model, recipe, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.manual_seed(2)
    again = narrow_network(recipe, seed=4)
    different = again.fc8.weight.detach().clone()
    initialize(again, recipe, seed=3)
    for (name, first), second in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second), name
    assert not torch.equal(different, again.fc8.weight)


def test_dropout_scales_in_testing_not_in_training() -> None:
    dropout, x = Dropout(0.5), torch.linspace(1, 2, 100_000)
    assert torch.equal(dropout.eval()(x), x * 0.5)
    torch.manual_seed(0)
    dropped = dropout.train()(x)
    kept = dropped != 0
    assert torch.equal(dropped[kept], x[kept])
    assert abs(kept.float().mean() - 0.5) < 5 * 0.5 / len(x) ** 0.5
    always = Dropout(0.0)
    assert torch.equal(always.train()(x), x)
    assert torch.equal(always.eval()(x), x)


def test_dropout_acts_on_fc6_and_fc7_of_both_towers_apart() -> None:
    model = narrow_network(RECIPES["paper"]).train()
    masks: list[Tensor] = []
    for tower in model.towers:
        assert isinstance(tower, Tower)
        tower.dropout.register_forward_hook(
            lambda _, inputs, output: masks.append((output != 0) | (inputs[0] == 0))
        )
    model(batch()[0])
    assert len(masks) == 4
    for index, mask in enumerate(masks):
        assert 0.2 < mask.float().mean() < 0.8
        assert not any(torch.equal(mask, other) for other in masks[:index])
