"""The network without single components, as in the ablations of the paper."""

import itertools
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from factories import (
    narrow_network,
    random_crops,
    random_inputs,
    rate_changes,
    relative_error,
)
from fake_device import GPU0, GPU1, shapes_only
from torch.export import Dim, export

from alexnet.diagnostics.copies import CopyTracer
from alexnet.diagnostics.equivalence import compare, he_init
from alexnet.errors import UserError
from alexnet.later_recipes import CAFFE, TORCHVISION
from alexnet.model.classifier import CropClassifier, view_probabilities
from alexnet.model.grouped import GroupedAlexNet
from alexnet.model.placement import from_grouped, place_towers, to_grouped
from alexnet.model.towers import AlexNet, Tower
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe, ablate
from alexnet.training.checkpoint import (
    TrainState,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    take_snapshot,
)
from alexnet.training.optimizer import build_optimizer
from alexnet.variants import with_conv6

ONE_TOWER = ablate(SOURCE145, towers=1)


@pytest.mark.parametrize("name", [pytest.param("paper", marks=pytest.mark.slow), "source145"])
@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("normalization", [True, False])
@pytest.mark.parametrize("overlapping", [True, False])
def test_every_combination_equals_one_column(
    name: str, towers: int, normalization: bool, overlapping: bool
) -> None:
    recipe = ablate(
        RECIPES[name], towers=towers, normalization=normalization, overlapping_pooling=overlapping
    )
    recipe = replace(recipe, hidden=48, dropout=0.0)
    network = AlexNet(recipe, 4).double()
    he_init(network)
    column = GroupedAlexNet(asdict(recipe), 4).double()
    mean = {"centre.mean": torch.zeros(3, 224, 224)}
    column.load_state_dict(to_grouped(network.state_dict()) | mean)
    crops = random_inputs(1, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(network(crops), column(crops)) < 1e-12


def test_the_ablated_networks_are_different_functions() -> None:
    crops = random_inputs(1)
    logits = []
    for normalization, overlapping in itertools.product([True, False], repeat=2):
        recipe = ablate(PAPER, normalization=normalization, overlapping_pooling=overlapping)
        network = narrow_network(recipe).eval()
        he_init(network)
        logits.append(network(crops).detach())
    for first, second in itertools.combinations(logits, 2):
        assert relative_error(first, second) > 0.05


def test_the_ablated_recipe() -> None:
    for recipe in RECIPES.values():
        assert ablate(recipe) == recipe
    recipe = ablate(SOURCE145, towers=1, normalization=False, overlapping_pooling=False)
    assert (recipe.cross_map, recipe.within_map) == (None, None)
    assert (recipe.pool_size, recipe.towers) == (2, 1)
    # The authors trained no network without two components.
    assert (recipe.schedule, recipe.epochs) == (SOURCE145.schedule, SOURCE145.epochs)
    without_norm = ablate(PAPER, normalization=False)
    assert (without_norm.schedule, without_norm.epochs) == (PAPER.schedule, PAPER.epochs)
    # The paper's text gives equal sizes of outputs; the authors' network has other paddings.
    recipe = ablate(PAPER, overlapping_pooling=False)
    assert (recipe.pool_size, recipe.pool_ceil) == (2, False)
    assert (recipe.conv2_padding, recipe.conv5_padding) == (2, 1)


@pytest.mark.parametrize(
    "recipe",
    [
        with_conv6(SOURCE145, pretrained=False),
        pytest.param(with_conv6(ONE_TOWER, pretrained=True), marks=pytest.mark.slow),
        pytest.param(CAFFE, marks=pytest.mark.slow),
        TORCHVISION,
    ],
)
def test_networks_with_other_layers_equal_one_column(recipe: Recipe) -> None:
    comparison = compare(replace(recipe, hidden=48), [torch.device("cpu")], 4)
    assert comparison.passed, comparison


def test_conv6_of_two_devices_reads_the_maps_of_both() -> None:
    network = narrow_network(with_conv6(SOURCE145, pretrained=False)).eval()
    with shapes_only():
        place_towers(network, [GPU0, GPU1])
        crops = [torch.empty(2, 3, 224, 224, device=device) for device in (GPU0, GPU1)]
        with CopyTracer() as tracer, tracer.layers(network):
            network(*crops)
    conv6 = [copy for copy in tracer.copies if copy.layer == "conv6"]
    assert {(copy.source, copy.target, copy.shape) for copy in conv6} == {
        (GPU0, GPU1, (2, 4608)),
        (GPU1, GPU0, (2, 4608)),
    }
    assert [copy.layer for copy in tracer.copies] == [
        *["conv3"] * 2,
        *["conv6"] * 2,
        *["fc6"] * 2,
        *["fc7"] * 2,
        "fc8",
    ]


def test_the_schedule_of_conv6_is_that_of_a_network_that_was_trained_before() -> None:
    fresh, tuned = (with_conv6(SOURCE145, pretrained=known) for known in (False, True))
    assert (fresh.schedule, fresh.epochs) == (SOURCE145.schedule, SOURCE145.epochs)
    assert (tuned.epochs, tuned.learning_rate) == (54, 0.001)
    assert tuned.bias_rate * 0.001 == pytest.approx(0.02)
    # A line of layer-params-146-2012-2011.cfg is a row: weights, conv1's, fc8's, biases, noise.
    assert rate_changes(tuned, "conv1", "fc8") == {
        1: (0.001, 0.0001, 0.01, 0.001, True),
        5: (0.001, 0.00001, 0.01, 0.001, True),
        7: (0.001, 0.0, 0.01, 0.001, True),
        9: (0.001, 0.0, 0.001, 0.001, True),
        22: (0.0001, 0.0, 0.0001, 0.001, True),
        38: (0.0001, 0.0, 0.0001, 0.001, False),
        42: (0.00001, 0.0, 0.00001, 0.001, False),
    }


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        (SOURCE145, 60_965_224),
        (with_conv6(SOURCE145, pretrained=True), 60_965_224 + 256 * (256 * 9 + 1)),
        (CAFFE, 60_965_224),
        (TORCHVISION, 61_100_840),
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


def test_pooling_windows_that_do_not_overlap_use_each_activation_once_at_most() -> None:
    tower = narrow_network(ablate(PAPER, overlapping_pooling=False)).towers[0]
    assert isinstance(tower, Tower)
    x = torch.arange(55.0 * 55).reshape(1, 1, 55, 55).requires_grad_()
    pooled = tower.pool(x)
    assert pooled.shape == (1, 1, 27, 27)
    pooled.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    # The largest value of each 2x2 window is at the lower right. Row and column 55 are not used.
    assert torch.equal(x.grad[0, 0, 1:54:2, 1:54:2], torch.ones(27, 27))
    assert x.grad.sum() == 27 * 27


def test_one_tower_needs_one_device_and_no_copies() -> None:
    network = narrow_network(ONE_TOWER).eval()
    with shapes_only():
        place_towers(network, [GPU1])
        with CopyTracer() as tracer:
            logits = network(torch.empty(2, 3, 224, 224, device=GPU1))
        assert (logits.device, tracer.copies) == (GPU1, [])
        with pytest.raises(ValueError, match="devices: 2, towers: 1"):
            place_towers(network, [GPU0, GPU1])


def test_weights_of_one_tower_are_those_of_one_column() -> None:
    state = narrow_network(ONE_TOWER).state_dict()
    grouped = to_grouped(state)
    assert {name.removeprefix("towers.0.") for name in state} == grouped.keys()
    restored = from_grouped(grouped, 1)
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert restored.keys() == state.keys()


def test_checkpoints_of_one_tower(tmp_path: Path) -> None:
    saved, two_towers = narrow_network(ONE_TOWER, seed=1), narrow_network(SOURCE145)
    optimizer, mean = build_optimizer(saved, ONE_TOWER), torch.zeros(3, 224, 224)
    save_checkpoint(str(tmp_path), take_snapshot(saved, optimizer, TrainState(step=3), mean))
    loaded = narrow_network(ONE_TOWER, seed=2)
    state = load_checkpoint(str(tmp_path), loaded, build_optimizer(loaded, ONE_TOWER))
    assert state.step == 3
    pairs = zip(saved.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(UserError, match="belongs to another network"):
        load_weights(str(tmp_path), two_towers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [ONE_TOWER, ablate(SOURCE145, normalization=False, overlapping_pooling=False)]
)
def test_an_ablated_classifier_can_be_exported(recipe: Recipe) -> None:
    network = narrow_network(recipe)
    he_init(network)
    classifier = CropClassifier(network, torch.full((3, 224, 224), 120.0))
    dynamic = {"crops": {0: Dim.DYNAMIC}}
    program = export(classifier, (random_crops(3),), dynamic_shapes=dynamic).module()
    crops = random_crops(2)
    views = torch.stack([crops, crops.flip(2)])
    expected = view_probabilities({"": classifier}, views)
    torch.testing.assert_close(view_probabilities({"": program}, views), expected)
    torch.testing.assert_close(expected.sum(dim=2), torch.ones(2, 2))
