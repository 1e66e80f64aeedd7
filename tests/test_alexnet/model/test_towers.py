"""The layers of the two towers, their initialization and dropout."""

import numpy as np
import pytest
import torch
from factories import narrow_network, random_inputs, relative_error
from torch import Tensor

from alexnet.diagnostics.equivalence import he_init
from alexnet.model.dropout import Dropout, dropout_keys
from alexnet.model.towers import AlexNet, Tower, initialize
from alexnet.recipes import LAYERS, RECIPES

CLASSES = 10


@pytest.fixture(scope="module", params=RECIPES)
def full_network(request: pytest.FixtureRequest) -> tuple[str, AlexNet]:
    """The name of a recipe, and its network of full size, initialized with seed 7."""
    model = AlexNet(RECIPES[request.param], CLASSES)
    initialize(model, RECIPES[request.param], seed=7)
    return request.param, model.eval()


def test_one_input_for_all_towers_or_one_for_each() -> None:
    model = narrow_network(RECIPES["paper"]).eval()
    crops = random_inputs(1)
    assert torch.equal(model(crops), model(crops, crops))


def test_the_recipes_are_different_functions() -> None:
    models = [narrow_network(recipe).eval() for recipe in RECIPES.values()]
    he_init(models[0])
    models[1].load_state_dict(models[0].state_dict())
    first, second = (model(random_inputs(2)) for model in models)
    assert relative_error(first, second) > 0.1


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        model = AlexNet(RECIPES["paper"], 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 60_965_224


def test_shapes_of_the_layers() -> None:
    model = narrow_network(RECIPES["source145"]).eval()
    tower = model.towers[0]
    assert isinstance(tower, Tower)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in tower.named_children():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    assert model(random_inputs(2)).shape == (2, 4)
    assert shapes["conv1"] == (2, 48, 55, 55)
    assert shapes["conv2"] == (2, 128, 27, 27)
    assert shapes["conv3"] == (2, 192, 13, 13)
    assert shapes["conv4"] == (2, 192, 13, 13)
    assert shapes["conv5"] == (2, 128, 13, 13)
    assert tower.fc6.in_features == 2 * 128 * 6 * 6


def test_conv1_pads_on_the_right_and_below() -> None:
    model = narrow_network(RECIPES["paper"]).eval()
    tower = model.towers[1]
    assert isinstance(tower, Tower)
    outputs: list[Tensor] = []
    tower.conv1.register_forward_hook(lambda _, inputs, output: outputs.append(output.detach()))
    crops = random_inputs(2)
    model(crops)
    crop = crops[0].double().numpy()
    kernels = tower.conv1.weight.detach().double().numpy()
    output = outputs[0][0].double().numpy()
    # The window at the first position is inside the crop. At the last position only 8 of its 11
    # rows and columns are.
    first = np.einsum("chw,kchw->k", crop[:, :11, :11], kernels)
    last = np.einsum("chw,kchw->k", crop[:, 216:, 216:], kernels[:, :, :8, :8])
    np.testing.assert_allclose(output[:, 0, 0], first, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(output[:, 54, 54], last, rtol=1e-3, atol=1e-3)


def check_initial_values(recipe: str, model: AlexNet) -> None:
    numbers = RECIPES[recipe]
    layers = set()
    for name, parameter in model.named_parameters():
        layer, kind = name.split(".")[-2:]
        layers.add(layer)
        values = parameter.detach().double()
        if kind == "bias":
            assert torch.all(values == (1.0 if layer in numbers.ones else 0.0)), name
            continue
        std, count = numbers.weight_std[layer], values.numel()
        assert abs(values.mean()) < 5 * std / count**0.5, name
        assert abs(values.std() / std - 1) < 5 / (2 * count) ** 0.5, name
        # The fourth moment of a Gaussian distribution is three times the squared variance.
        assert abs((values / std).pow(4).mean() - 3) < 5 * (96 / count) ** 0.5, name
    assert layers == set(LAYERS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_initial_values(recipe: str) -> None:
    check_initial_values(recipe, narrow_network(RECIPES[recipe], seed=7))


@pytest.mark.slow
def test_initial_values_of_the_full_network(full_network: tuple[str, AlexNet]) -> None:
    check_initial_values(*full_network)


def test_towers_have_different_initial_weights() -> None:
    model = narrow_network(RECIPES["source145"])
    first, second = (dict(tower.named_parameters()) for tower in model.towers)
    for name in first:
        if name.endswith("weight"):
            correlation = np.corrcoef(
                first[name].detach().flatten().numpy(), second[name].detach().flatten().numpy()
            )[0, 1]
            assert abs(correlation) < 5 / first[name].numel() ** 0.5, name


def test_initial_weights_depend_on_the_seed_alone() -> None:
    recipe = RECIPES["paper"]
    first = narrow_network(recipe, seed=5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    initialize(first, recipe, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not used"
    torch.manual_seed(2)
    second = narrow_network(recipe, seed=4)
    other_seed = second.fc8.weight.detach().clone()
    initialize(second, recipe, seed=3)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(other_seed, second.fc8.weight)


def test_dropout_scales_in_evaluation_not_in_training() -> None:
    dropout, x = Dropout(0.5), torch.linspace(1, 2, 100)[None]
    kept = torch.arange(100)[None] % 3 > 0
    assert torch.equal(dropout.eval()(x, None), x * 0.5)
    dropped = dropout.train()(x, kept)
    assert torch.equal(dropped[kept], x[kept])
    assert torch.equal(dropped[~kept], torch.zeros(34))
    no_dropout = Dropout(0.0)
    assert torch.equal(no_dropout.train()(x, None), x)
    assert torch.equal(no_dropout.eval()(x, None), x)


def test_dropout_masks_of_fc6_and_fc7_differ_between_towers() -> None:
    model = narrow_network(RECIPES["paper"]).train()
    masks: list[Tensor] = []
    for tower in model.towers:
        assert isinstance(tower, Tower)
        tower.dropout.register_forward_hook(
            lambda _, inputs, output: masks.append((output != 0) | (inputs[0] == 0))
        )
    model(random_inputs(2), keys=[dropout_keys(0, 0, torch.arange(2))])
    assert len(masks) == 4
    for index, mask in enumerate(masks):
        assert 0.2 < mask.float().mean() < 0.8
        assert not any(torch.equal(mask, other) for other in masks[:index])
