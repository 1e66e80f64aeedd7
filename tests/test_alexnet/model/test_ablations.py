"""The network without one idea after another, as the paper took them out to see their worth."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factories import he_init, narrow_network, relative_error
from reference_model import ALPHA, cross_map, within_map
from test_classifier import bytes_of
from test_placement import GPU0, GPU1, fake_devices
from torch import Tensor
from torch.export import Dim, export

from alexnet.diagnostics.copies import CopyTracer
from alexnet.errors import UserError
from alexnet.model.classifier import CropClassifier, view_probabilities
from alexnet.model.placement import from_single, place_towers, to_single
from alexnet.model.towers import AlexNet, Tower
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe, ablate
from alexnet.training.checkpoint import TrainState, load, load_weights, save, snapshot
from alexnet.training.optimizer import build_optimizer
from pipelines.settings import TrainSettings
from pipelines.training.state import chosen_recipe

ONE_TOWER = ablate(SOURCE145, towers=1)


def column(
    weights: dict[str, Tensor], x: Tensor, name: str, *, normalization: bool, side: int, groups: int
) -> Tensor:
    """One column with groups; each normalized by itself. In testing: fc6 and fc7 are halved."""

    def norm(x: Tensor) -> Tensor:
        parts = [cross_map(part, ALPHA[name]) for part in x.chunk(groups, dim=1)]
        return torch.cat(parts, dim=1) if normalization else x

    def conv(x: Tensor, layer: str, padding: int, groups: int) -> Tensor:
        kernels, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        return F.conv2d(x, kernels, bias, 4 if layer == "conv1" else 1, padding, groups=groups)

    def dense(x: Tensor, layer: str) -> Tensor:
        return x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]

    x = conv(F.pad(x, (0, 3, 0, 3)), "conv1", 0, 1)
    x = norm(x.relu() if name == "paper" else x)
    x = F.max_pool2d(x, side, 2).relu()
    assert x.shape[1:] == (48 * groups, 27, 27)
    x = norm(conv(x, "conv2", 2, groups).relu())
    if name == "source145" and normalization:
        x = within_map(x)
    x = F.max_pool2d(x, side, 2)
    assert x.shape[1:] == (128 * groups, 13, 13)
    x = conv(x, "conv3", 1, 1).relu()
    x = conv(x, "conv4", 1, groups).relu()
    x = F.max_pool2d(conv(x, "conv5", 1, groups).relu(), side, 2)
    assert x.shape[1:] == (256, 6, 6)
    x = dense(x.flatten(1), "fc6").relu() / 2
    x = dense(x, "fc7").relu() / 2
    return dense(x, "fc8")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("overlapping", [True, False])
def test_every_combination_against_a_plain_column(
    name: str, towers: int, normalization: bool, overlapping: bool
) -> None:
    recipe = ablate(
        RECIPES[name], towers=towers, normalization=normalization, overlapping_pooling=overlapping
    )
    network = narrow_network(recipe).double().eval()
    he_init(network)
    patches = 70 * torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = column(
            to_single(network.state_dict()),
            patches,
            name,
            normalization=normalization,
            side=3 if overlapping else 2,
            groups=towers,
        )
        assert relative_error(network(patches), expected) < 1e-12


def test_ablations_differ() -> None:
    patches = 70 * torch.randn(1, 3, 224, 224)
    found = []
    for normalization, overlapping in itertools.product([True, False], repeat=2):
        recipe = ablate(PAPER, normalization=normalization, overlapping_pooling=overlapping)
        network = narrow_network(recipe).eval()
        he_init(network)
        found.append(network(patches).detach())
    for first, second in itertools.combinations(found, 2):
        assert relative_error(first, second) > 0.05


def test_nothing_taken_out_is_the_recipe_itself() -> None:
    for recipe in RECIPES.values():
        assert ablate(recipe) == recipe
        settings = TrainSettings.model_validate({"recipe": recipe.name})
        assert chosen_recipe(settings) == recipe


def test_settings_reach_the_recipe() -> None:
    settings = TrainSettings.model_validate(
        {"recipe": "paper", "towers": 1, "normalization": "off", "overlapping_pooling": "off"}
    )
    expected = ablate(PAPER, towers=1, normalization=False, overlapping_pooling=False)
    assert chosen_recipe(settings) == expected
    assert (expected.cross_map, expected.within_map, expected.pool_size) == (None, None, 2)


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        (SOURCE145, 60_965_224),
        (ONE_TOWER, 59_798_312),
        (ablate(SOURCE145, normalization=False), 60_965_224),
        (ablate(SOURCE145, overlapping_pooling=False), 60_965_224),
    ],
)
def test_number_of_parameters(recipe: Recipe, count: int) -> None:
    with torch.device("meta"):
        network = AlexNet(recipe, 1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_the_layers_of_one_tower() -> None:
    with torch.device("meta"):
        network = AlexNet(ONE_TOWER, 1000)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters() if "weight" in name}
    assert shapes == {
        "towers.0.conv1.weight": (48, 3, 11, 11),
        "towers.0.conv2.weight": (128, 48, 5, 5),
        "towers.0.conv3.weight": (192, 128, 3, 3),
        "towers.0.conv4.weight": (192, 192, 3, 3),
        "towers.0.conv5.weight": (256, 192, 3, 3),
        "towers.0.fc6.weight": (4096, 9216),
        "towers.0.fc7.weight": (4096, 4096),
        "fc8.weight": (1000, 4096),
    }


def test_pools_that_do_not_overlap_see_every_activation_once_at_most() -> None:
    tower = narrow_network(ablate(PAPER, overlapping_pooling=False)).towers[0]
    assert isinstance(tower, Tower)
    x = torch.arange(55.0 * 55).reshape(1, 1, 55, 55).requires_grad_()
    pooled = tower.pool(x)
    assert pooled.shape == (1, 1, 27, 27)
    pooled.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    # Each 2x2 square has its largest value below right; the 55th row and column are left over.
    assert torch.equal(x.grad[0, 0, 1:54:2, 1:54:2], torch.ones(27, 27))
    assert x.grad.sum() == 27 * 27


def test_one_tower_on_one_device_crosses_nothing() -> None:
    network = narrow_network(ONE_TOWER)
    with fake_devices():
        place_towers(network, [GPU1])
        with CopyTracer() as crossings:
            logits = network(torch.empty(2, 3, 224, 224, device=GPU1))
        assert (logits.device, crossings.found) == (GPU1, [])
        with pytest.raises(ValueError, match="devices: 2, towers: 1"):
            place_towers(network, [GPU0, GPU1])


def test_one_tower_is_its_own_column() -> None:
    state = narrow_network(ONE_TOWER).state_dict()
    single = to_single(state)
    assert {name.removeprefix("towers.0.") for name in state} == single.keys()
    again = from_single(single, 1)
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert again.keys() == state.keys()


def test_checkpoints_of_one_tower(tmp_path: Path) -> None:
    one, two = narrow_network(ONE_TOWER, seed=1), narrow_network(SOURCE145)
    optimizer, mean = build_optimizer(one, ONE_TOWER), torch.zeros(3, 224, 224)
    save(str(tmp_path), snapshot(one, optimizer, TrainState(step=3), mean))
    other = narrow_network(ONE_TOWER, seed=2)
    position = load(str(tmp_path), other, build_optimizer(other, ONE_TOWER))
    assert position.step == 3
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(UserError, match="belongs to another network"):
        load_weights(str(tmp_path), two)


@pytest.mark.parametrize(
    "recipe", [ONE_TOWER, ablate(PAPER, normalization=False, overlapping_pooling=False)]
)
def test_what_is_registered_and_evaluated(recipe: Recipe) -> None:
    network = narrow_network(recipe)
    he_init(network)
    classifier = CropClassifier(network, torch.full((3, 224, 224), 120.0))
    dynamic = {"patches": {0: Dim.DYNAMIC}}
    program = export(classifier, (bytes_of(3),), dynamic_shapes=dynamic).module()
    views = torch.stack([bytes_of(2), bytes_of(2).flip(2)])
    expected = view_probabilities([classifier], views)
    torch.testing.assert_close(view_probabilities([program], views), expected)
    torch.testing.assert_close(expected.sum(dim=2), torch.ones(2, 2))
