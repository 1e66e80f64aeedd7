"""Options that did not exist in 2012: bfloat16 and warm-up. Switched off, they change no bit."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from factories import (
    BATCH_SIZE,
    CLASSES,
    ROWS,
    SEED,
    SOURCE145_AND_SLOW_PAPER,
    loader_of,
    narrow_network,
    relative_error,
    start_training,
    train_context,
)
from torch import Tensor, nn

from alexnet.diagnostics.equivalence import he_init
from alexnet.model.towers import AlexNet, Tower
from alexnet.recipes import PAPER, SOURCE145, Recipe
from alexnet.shards.loader import ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import sample_augment_params, training_crops
from alexnet.training.loop import train_epoch
from alexnet.training.optimizer import EpochRates, apply_warmup, build_optimizer, set_rates
from alexnet.training.validation import validate

RATES = EpochRates(0.001)


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_without_options_training_equals_a_plain_loop_bit_for_bit(
    dataset: Manifest, recipe: Recipe
) -> None:
    recipe = replace(recipe, dropout=0.0)
    context = train_context(dataset, recipe)
    loader = ShardLoader(manifest=dataset, batch_size=2, seed=SEED)
    model, optimizer = start_training(recipe)
    plain_model = copy.deepcopy(model)
    plain_optimizer = build_optimizer(plain_model, recipe)
    set_rates(plain_optimizer, RATES)
    for _ in train_epoch(model, optimizer, loader, context, RATES, epoch=1, offset=ROWS - 3):
        pass
    for batch in loader.epoch(1, offset=ROWS - 3):
        params = sample_augment_params(
            recipe, context.pca_axes, batch.rows, seed=SEED, epoch=1, offset=batch.offset
        )
        crops = training_crops(
            batch.images, params.take(batch.positions), context.means[0], recipe.training_scale
        )
        loss = F.cross_entropy(plain_model(crops), batch.labels, reduction="sum")
        plain_optimizer.zero_grad()
        (loss * (1 / batch.rows)).backward()  # type: ignore[no-untyped-call]
        plain_optimizer.step()
    pairs = zip(model.named_parameters(), plain_model.parameters(), strict=True)
    for (name, parameter), expected in pairs:
        assert torch.equal(parameter, expected), name


def record_dtypes(model: AlexNet) -> dict[str, set[torch.dtype]]:
    """The types of each module's outputs, and of the normalizations' inputs, after a step."""
    dtypes: dict[str, set[torch.dtype]] = defaultdict(set)

    def record(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dtypes[name].add(output.dtype)
        if "norm" in name:
            dtypes[name].add(inputs[0].dtype)

    for tower in model.towers:
        assert isinstance(tower, Tower)
        for name, module in tower.named_children():
            module.register_forward_hook(
                lambda _, inputs, output, name=name: record(name, inputs, output)
            )
    return dtypes


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_bf16_is_used_only_in_convolutions_and_matrix_products(
    dataset: Manifest, recipe: Recipe
) -> None:
    recipe = replace(recipe, dropout=0.0)
    losses: dict[bool, float] = {}
    gradients: dict[bool, dict[str, Tensor]] = {}
    for bf16 in (False, True):
        model, optimizer = start_training(recipe)
        he_init(model)
        with torch.no_grad():
            model.fc8.weight.mul_(0.1)  # Without this, the loss would be 0 or infinite.
        dtypes = record_dtypes(model)
        context = replace(train_context(dataset, recipe), bf16=bf16)
        loader = ShardLoader(manifest=dataset, batch_size=2, seed=SEED)
        step = next(train_epoch(model, optimizer, loader, context, RATES, epoch=1))
        products = {name: dtypes[name] for name in dtypes if name.startswith(("conv", "fc"))}
        assert len(products) == 7
        expected_dtype = torch.bfloat16 if bf16 else torch.float32
        assert all(used == {expected_dtype} for used in products.values())
        assert dtypes["norm1"] == dtypes["norm2"] == {torch.float32}
        assert step.loss.dtype == torch.float32
        losses[bf16], gradients[bf16] = float(step.loss), {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            gradients[bf16][name] = parameter.grad
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)
    for name, gradient in gradients[False].items():
        # Independent gradients have an error of 1.4. The error here is not as small as rounding,
        # because ReLU and max pooling may select other units.
        assert 0 < relative_error(gradients[True][name], gradient) < 0.5, name


@pytest.mark.slow
def test_bf16_in_validation(dataset: Manifest) -> None:
    model = narrow_network(SOURCE145)
    he_init(model)
    context = train_context(dataset, SOURCE145)
    float32, bfloat16 = (
        validate(model, loader_of(dataset, world_size=2), replace(context, bf16=bf16))
        for bf16 in (False, True)
    )
    assert bfloat16.images == float32.images
    assert bfloat16.loss != float32.loss
    assert bfloat16.loss == pytest.approx(float32.loss, rel=0.1)


def test_warmup_of_the_rates() -> None:
    rates = EpochRates(0.08, {"conv1": 0.1}, biases=0.02)
    warming_up = [apply_warmup(rates, seen, 400) for seen in (1, 100, 200, 399)]
    assert [one.learning_rate for one in warming_up] == pytest.approx([0.0002, 0.02, 0.04, 0.0798])
    assert [one.biases for one in warming_up] == pytest.approx([0.00005, 0.005, 0.01, 0.01995])
    assert {(one.layers["conv1"], one.colour_noise) for one in warming_up} == {(0.1, True)}
    assert apply_warmup(rates, 400, 400) is rates
    assert apply_warmup(rates, 1, 0) is rates
    assert apply_warmup(EpochRates(0.08), 100, 400).biases is None


class SmallNetwork(nn.Module):
    """One layer, with a name that ``build_optimizer`` accepts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc8 = nn.Linear(3, len(CLASSES))

    def forward(self, crops: Tensor, keys: Sequence[Tensor]) -> Tensor:
        assert len(keys[0]) == len(crops)
        logits: Tensor = self.fc8(crops.mean(dim=(2, 3)))
        return logits


def test_warmup_in_training(dataset: Manifest) -> None:
    """39 rows in batches of 8. The rate rises over 58 rows, one and a half epochs."""
    context = replace(train_context(dataset, PAPER), warmup_rows=58)
    loader = ShardLoader(manifest=dataset, batch_size=BATCH_SIZE, seed=SEED)

    def used_rates(epoch: int, offset: int = 0) -> list[float]:
        model = SmallNetwork()
        optimizer = build_optimizer(model, PAPER)
        set_rates(optimizer, RATES)
        steps = train_epoch(model, optimizer, loader, context, RATES, epoch=epoch, offset=offset)
        return [optimizer.param_groups[0]["lr"] for _ in steps]

    used = used_rates(0) + used_rates(1)
    rows = [8, 16, 24, 32, 39, 47, 55, 63, 71, 78]
    assert used == pytest.approx([0.001 * min(1, seen / 58) for seen in rows])
    assert used_rates(0, offset=16) == used[2:5], "a resumed run has the same rates"
