"""Options that 2012 did not have: each does what it says, and off it changes no bit."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import he_init, narrow_network, relative_error
from test_loop import SEED, SIZE, setup_of, start, weights_of
from torch import Tensor

from alexnet.model.towers import Tower
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.shards.format import Manifest
from alexnet.shards.loader import ShardLoader
from alexnet.training.augment import draw, training_crops
from alexnet.training.loop import train_epoch, validate
from alexnet.training.optimizer import EpochRates, apply_warmup, build_optimizer, set_rates
from pipelines.settings import TrainSettings


def test_all_are_off_by_default() -> None:
    settings = TrainSettings()
    assert (settings.precision, settings.gradient_compression) == ("float32", "none")
    assert (settings.warmup_epochs, settings.ema) == (0, None)
    names = {"precision", "gradient_compression", "warmup_epochs", "ema"}
    assert names <= settings.results().keys(), "a change of them trains again"


@pytest.mark.parametrize("recipe", [replace(r, dropout=0.0) for r in RECIPES.values()], ids=RECIPES)
def test_off_the_step_is_the_plain_one_bit_for_bit(dataset: Manifest, recipe: Recipe) -> None:
    setup, reader = (
        setup_of(dataset, recipe),
        ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED),
    )
    model, optimizer = start(recipe)
    plain = copy.deepcopy(model)
    its_optimizer = build_optimizer(plain, recipe)
    set_rates(its_optimizer, EpochRates(0.001))
    for _ in train_epoch(model, optimizer, reader, setup, EpochRates(0.001), epoch=1):
        pass
    for batch in reader.epoch(1):
        draws = draw(recipe, setup.axes, batch.rows, seed=SEED, epoch=1, offset=batch.offset)
        patches = training_crops(
            batch.images, draws.take(batch.positions), setup.means[0], recipe.training_scale
        )
        loss = F.cross_entropy(plain(patches), batch.labels, reduction="sum")
        its_optimizer.zero_grad()
        (loss * (1 / batch.rows)).backward()  # type: ignore[no-untyped-call]
        its_optimizer.step()
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("recipe", [replace(r, dropout=0.0) for r in RECIPES.values()], ids=RECIPES)
def test_bf16_is_in_products_and_nowhere_else(dataset: Manifest, recipe: Recipe) -> None:
    kinds: dict[str, set[torch.dtype]] = {}
    found = {}
    for bf16 in (False, True):
        model, optimizer = start(recipe)
        he_init(model)
        with torch.no_grad():
            model.fc8.weight.mul_(0.1)  # Or the loss would be 0 or infinite.
        kinds.clear()
        for tower in model.towers:
            assert isinstance(tower, Tower)
            for name, module in tower.named_children():
                module.register_forward_hook(
                    lambda _, inputs, output, name=name: kinds.setdefault(name, set()).update(
                        {inputs[0].dtype, output.dtype} if "norm" in name else {output.dtype}
                    )
                )
        setup = replace(setup_of(dataset, recipe), bf16=bf16)
        reader = ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED)
        step = next(train_epoch(model, optimizer, reader, setup, EpochRates(0.001), epoch=1))
        products = {name: kinds[name] for name in kinds if name.startswith(("conv", "fc"))}
        assert len(products) == 7
        dtype = torch.bfloat16 if bf16 else torch.float32
        assert all(kind == {dtype} for kind in products.values())
        assert kinds["norm1"] == kinds["norm2"] == {torch.float32}
        assert step.loss.dtype == torch.float32
        gradients = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            gradients[name] = parameter.grad
        found[bf16] = (float(step.loss), gradients)
    (exact, gradients), (loss, rounded) = found[False], found[True]
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.05)
    for name, gradient in gradients.items():
        # Of unrelated gradients it would be 1.4; maxima and zeros may be those of other units.
        assert 0 < relative_error(rounded[name], gradient) < 0.5, name


def test_bf16_in_validation(dataset: Manifest) -> None:
    model = narrow_network(SOURCE145)
    he_init(model)
    setup = setup_of(dataset, SOURCE145)
    exact, rounded = (validate(model, dataset, replace(setup, bf16=on)) for on in (False, True))
    assert rounded.images == exact.images
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.1)


def test_warming_up() -> None:
    rates = EpochRates(0.08, conv1=0.1, biases=0.02)
    found = [apply_warmup(rates, seen, 400) for seen in (1, 100, 200, 399)]
    assert [one.learning_rate for one in found] == pytest.approx([0.0002, 0.02, 0.04, 0.0798])
    assert [one.biases for one in found] == pytest.approx([0.00005, 0.005, 0.01, 0.01995])
    assert {(one.conv1, one.colour_noise) for one in found} == {(0.1, True)}
    assert apply_warmup(rates, 400, 400) is rates
    assert apply_warmup(rates, 1, 0) is rates
    assert apply_warmup(EpochRates(0.08), 100, 400).biases is None


def test_an_epoch_of_warming_up(dataset: Manifest) -> None:
    """39 rows in batches of 8; the rate rises over one and a half epochs and then stays."""
    setup = replace(setup_of(dataset, PAPER), warmup_rows=58)
    reader = ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED)
    model, optimizer = start(PAPER, learning_rate=0.001)
    found: list[float] = []
    after: list[dict[str, Tensor]] = []
    for epoch in (0, 1):
        set_rates(optimizer, EpochRates(0.001))
        for _ in train_epoch(model, optimizer, reader, setup, EpochRates(0.001), epoch=epoch):
            found.append(optimizer.param_groups[0]["lr"])
            after.append(weights_of(model))
    rows = [8, 16, 24, 32, 39, 47, 55, 63, 71, 78]
    assert found == pytest.approx([0.001 * min(1, seen / 58) for seen in rows])

    # A run that goes on in the middle has the same rates.
    resumed, its_optimizer = start(PAPER, learning_rate=0.001)
    steps = train_epoch(
        resumed, its_optimizer, reader, setup, EpochRates(0.001), epoch=0, offset=16
    )
    rates = [its_optimizer.param_groups[0]["lr"] for _ in steps]
    assert rates == found[2:5]
    assert not torch.equal(after[0]["fc8.bias"], after[1]["fc8.bias"])
