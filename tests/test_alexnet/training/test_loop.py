"""Training steps, epochs and validation: repeatable bit for bit, and compared with NumPy."""

import copy
import itertools
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import (
    BATCH_SIZE,
    ROWS,
    SEED,
    SOURCE145_AND_SLOW_PAPER,
    loader_of,
    narrow_network,
    relative_error,
    start_training,
    total,
    train_context,
)
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alexnet.diagnostics.equivalence import he_init
from alexnet.metrics import LossAndErrors
from alexnet.model.dropout import Dropout
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.shards.pixel_stats import read_statistics
from alexnet.training.augment import sample_augment_params
from alexnet.training.checkpoint import (
    TrainState,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from alexnet.training.loop import Step, StepSums, train_epoch, train_on_batch, train_step
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates
from alexnet.training.validation import validate

RATES = EpochRates(0.001)


def run_steps(
    dataset: Manifest,
    model: AlexNet,
    optimizer: MomentumSGD,
    recipe: Recipe,
    *,
    count: int | None = None,
    offset: int = 0,
    batch_size: int = BATCH_SIZE,
    seed: int = SEED,
    epoch: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> list[Step]:
    """Train ``count`` steps, or to the end of the epoch."""
    loader = ShardLoader(
        manifest=dataset, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size
    )
    context = train_context(dataset, recipe, seed=seed)
    steps: Generator[Step, None, None] = train_epoch(
        model, optimizer, loader, context, RATES, epoch=epoch, offset=offset
    )
    with closing(steps):
        return list(itertools.islice(steps, count))


def losses_of(steps: list[Step]) -> list[float]:
    return [float(step.loss) for step in steps]


def equal_weights(first: AlexNet, second: AlexNet) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("recipe", SOURCE145_AND_SLOW_PAPER)
def test_runs_with_one_seed_are_equal_bit_for_bit(dataset: Manifest, recipe: Recipe) -> None:
    models, losses = [], []
    for earlier_seed in (1, 2):
        torch.manual_seed(earlier_seed)  # Must have no effect.
        model, optimizer = start_training(recipe)
        models.append(model)
        steps = run_steps(dataset, model, optimizer, recipe, count=2, batch_size=2)
        losses.append(losses_of(steps))
    assert losses[0] == losses[1]
    assert equal_weights(*models)
    model, optimizer = start_training(recipe)
    steps = run_steps(dataset, model, optimizer, recipe, count=1, batch_size=2, seed=SEED + 1)
    assert losses_of(steps)[0] != losses[0][0]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    dataset: Manifest, tmp_path: Path
) -> None:
    """The last five rows of an epoch, in batches of 2, 2 and 1, with a checkpoint after 2."""

    def run(
        model: AlexNet, optimizer: MomentumSGD, offset: int, count: int | None = None
    ) -> list[Step]:
        return run_steps(
            dataset, model, optimizer, SOURCE145, offset=offset, count=count, batch_size=2
        )

    saved, saved_optimizer = start_training(SOURCE145)
    before = run(saved, saved_optimizer, ROWS - 5, count=1)
    state = TrainState(epoch=1, offset=before[-1].offset, step=1)
    snapshot = take_snapshot(saved, saved_optimizer, state, torch.zeros(3, 224, 224))
    save_checkpoint(str(tmp_path), snapshot)
    continued = run(saved, saved_optimizer, state.offset)

    # As in another process: the initial weights and the generator's state are different.
    torch.manual_seed(99)
    resumed = narrow_network(SOURCE145, seed=1234)
    resumed_optimizer = build_optimizer(resumed, SOURCE145)
    loaded = load_checkpoint(str(tmp_path), resumed, resumed_optimizer)
    assert loaded == state
    set_rates(resumed_optimizer, RATES)
    after = run(resumed, resumed_optimizer, loaded.offset)

    uninterrupted, optimizer = start_training(SOURCE145)
    losses = losses_of(run(uninterrupted, optimizer, ROWS - 5))
    assert len(losses) == 3
    assert losses_of(before + continued) == losses
    assert losses_of(before + after) == losses
    assert equal_weights(resumed, uninterrupted)
    assert equal_weights(saved, uninterrupted)
    pairs = zip(resumed.parameters(), uninterrupted.parameters(), strict=True)
    assert all(torch.equal(resumed_optimizer.velocity(a), optimizer.velocity(b)) for a, b in pairs)


@pytest.mark.parametrize(
    ("world_size", "batch_size", "offset"),
    [
        pytest.param(2, 7, 0, marks=pytest.mark.slow),  # 4 and 3 images.
        (3, 7, 35),  # The last batch of 4 images: 2, 1 and 1.
        (2, 38, 38),  # The last batch of 1 image: 1 and none.
    ],
)
def test_the_average_of_unequal_workers_is_the_gradient_of_the_batch(
    dataset: Manifest, world_size: int, batch_size: int, offset: int
) -> None:
    recipe = replace(SOURCE145, dropout=0.0)

    def gradients(rank: int, world_size: int) -> tuple[dict[str, Tensor], Step]:
        model, optimizer = start_training(recipe, learning_rate=0.0)
        he_init(model)
        (step,) = run_steps(
            dataset,
            model,
            optimizer,
            recipe,
            count=1,
            offset=offset,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
        by_name = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            by_name[name] = parameter.grad
        return by_name, step

    expected, single = gradients(0, 1)
    workers = [gradients(rank, world_size) for rank in range(world_size)]
    assert sum(step.images for _, step in workers) == single.images == single.rows
    assert {(step.rows, step.offset) for _, step in workers} == {(single.rows, single.offset)}
    assert float(single.loss) == pytest.approx(sum(float(step.loss) for _, step in workers), 1e-5)
    for name, gradient in expected.items():
        average = torch.stack([by_name[name] for by_name, _ in workers]).mean(dim=0)
        assert gradient.norm() > 0
        assert relative_error(average, gradient) < 1e-4, name


def test_the_gradient_is_that_of_the_mean_loss(dataset: Manifest) -> None:
    recipe = replace(PAPER, dropout=0.0)
    model, optimizer = start_training(recipe, learning_rate=0.0)
    he_init(model)
    inputs: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    loader = ShardLoader(manifest=dataset, batch_size=4, seed=SEED)
    (step,) = run_steps(dataset, model, optimizer, recipe, count=1, batch_size=4)
    labels = next(loader.epoch(1)).labels
    gradients = {name: p.grad for name, p in model.named_parameters()}
    log_probabilities = model(inputs[0]).log_softmax(dim=1)
    mean_loss = -log_probabilities[torch.arange(4), labels].mean()
    expected = torch.autograd.grad(mean_loss, list(model.parameters()))
    for (name, gradient), expected_gradient in zip(gradients.items(), expected, strict=True):
        assert gradient is not None
        assert relative_error(gradient, expected_gradient) < 1e-5, name
    assert float(step.loss) == pytest.approx(4 * float(mean_loss.detach()), rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("noise", [True, False])
def test_the_input_of_the_network(dataset: Manifest, recipe: Recipe, noise: bool) -> None:
    model, optimizer = start_training(recipe)
    inputs: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    loader = ShardLoader(manifest=dataset, batch_size=3, seed=SEED)
    context = train_context(dataset, recipe)
    rates = EpochRates(0.001, colour_noise=noise)
    next(train_epoch(model, optimizer, loader, context, rates, epoch=4, offset=16))
    batch = next(loader.epoch(4, 16))
    params = sample_augment_params(
        recipe, context.pca_axes, 3, seed=SEED, epoch=4, offset=16, colour_noise=noise
    )
    # The 2012 source divides by 1 plus the noise's standard deviation, which is 0 from epoch 67 on.
    scale = 1 / 1.1 if recipe is SOURCE145 and noise else 1.0
    mean_image = read_statistics(dataset.statistics_path).mean_image
    mean = mean_image[16:240, 16:240].astype(np.float64)
    for i, position in enumerate(batch.positions.tolist()):
        top, left = params.corners[position]
        pixels = batch.images[i].numpy()[top : top + 224, left : left + 224]
        pixels = pixels[:, ::-1] if params.flips[position] else pixels
        expected = (pixels - mean + params.colours[position]) * scale
        np.testing.assert_allclose(inputs[0][i].numpy(), expected.transpose(2, 0, 1), atol=1e-4)
    assert bool(params.colours.any()) == noise


def test_the_counts_of_a_step_against_numpy(dataset: Manifest) -> None:
    recipe = replace(SOURCE145, dropout=0.0)
    model, optimizer = start_training(recipe)
    outputs: list[NDArray[np.float64]] = []
    model.register_forward_hook(
        lambda _, inputs, output: outputs.append(output.detach().double().numpy())
    )
    steps = run_steps(dataset, model, optimizer, recipe, offset=32, batch_size=4)
    loader = ShardLoader(manifest=dataset, batch_size=4, seed=SEED)
    batches = list(loader.epoch(1, offset=32))
    assert [step.images for step in steps] == [4, 3]
    assert [step.offset for step in steps] == [36, 39]
    top1_wrong = loss = 0.0
    for logits, batch in zip(outputs, batches, strict=True):
        labels = batch.labels.numpy()
        top1_wrong += (logits.argmax(axis=1) != labels).sum()
        of_true_class = logits[np.arange(len(labels)), labels]
        loss += (np.log(np.exp(logits).sum(axis=1)) - of_true_class).sum()
    sums = total(steps)
    assert (sums.images, sums.top1_wrong, sums.top5_wrong) == (7, top1_wrong, 0)
    assert sums.loss == pytest.approx(loss, rel=1e-5)
    assert 0 < sums.top1_wrong <= 7


def test_sums_of_steps_are_exact() -> None:
    """As Python adds the losses: in float64, one after the other."""
    losses = torch.rand(50, generator=torch.Generator().manual_seed(1)) * 1000
    sums = StepSums()
    for number, loss in enumerate(losses):
        sums.add(Step(loss, torch.tensor(number), torch.tensor(1), 3, 4, 0))
    read = sums.read()
    assert read.loss == sum(losses.tolist())
    assert (read.top1_wrong, read.top5_wrong, read.images) == (sum(range(50)), 50, 150)
    assert (sums.steps, sums.rows) == (50, 200)
    sums.start_copy()
    with pytest.raises(AssertionError):
        sums.add(Step(losses[0], torch.tensor(0), torch.tensor(1), 3, 4, 0))


def test_top5_errors_of_a_step() -> None:
    recipe = replace(PAPER, dropout=0.0)
    model = narrow_network(recipe, classes=12)
    optimizer = build_optimizer(model, recipe)
    with torch.no_grad():
        model.fc8.weight.zero_()
        model.fc8.bias.copy_(torch.arange(12.0))
    labels = torch.tensor([11, 10, 7, 6, 0])
    images = torch.empty((5, 256, 256, 3), dtype=torch.uint8)
    batch = Batch(images, labels, np.arange(5), offset=10, rows=5)
    step = train_step(model, optimizer, [torch.zeros(5, 3, 224, 224)], batch, 1)
    # The best five classes are 11, 10, 9, 8 and 7.
    assert (int(step.top1_wrong), int(step.top5_wrong)) == (4, 2)
    assert (step.images, step.rows, step.offset) == (5, 5, 15)


def test_dropout_masks_depend_on_the_image_and_not_on_the_worker(dataset: Manifest) -> None:
    def masks(epoch: int, offset: int, world_size: int = 1, earlier_seed: int = 0) -> Tensor:
        """(fc6 and fc7 of two towers, images of the batch in its order, units)."""
        torch.manual_seed(earlier_seed)
        of_batch = torch.empty((4, 4, 24), dtype=torch.bool)
        for rank in range(world_size):
            model, optimizer = start_training(PAPER)
            loader = replace(loader_of(dataset, rank=rank, world_size=world_size), batch_size=4)
            (batch,) = itertools.islice(loader.epoch(epoch, offset), 1)
            recorded: list[Tensor] = []
            for module in model.modules():
                if isinstance(module, Dropout):
                    module.register_forward_hook(lambda _, x, __, to=recorded: to.append(x[1]))
            train_on_batch(model, optimizer, batch, train_context(dataset, PAPER), epoch=epoch)
            of_batch[:, batch.positions] = torch.stack(recorded)
        return of_batch

    first = masks(1, 8)
    assert torch.equal(masks(1, 8, world_size=3), first)
    assert torch.equal(masks(1, 8, earlier_seed=1), first), "torch's generator has no effect"
    for other in (masks(2, 8), masks(1, 16), first.flip(0), first.flip(1)):
        assert 0.3 < (first == other).float().mean() < 0.7


def test_validation_against_numpy(dataset: Manifest) -> None:
    model = narrow_network(SOURCE145)
    he_init(model)
    model.train()
    images, labels = [], []
    for shard in dataset.shards["val"]:
        table = pq.read_table(Path(dataset.folder) / shard.file)
        labels += table["label"].to_pylist()
        images += [np.asarray(Image.open(BytesIO(data))) for data in table["image"].to_pylist()]
    mean = read_statistics(dataset.statistics_path).mean_image
    crops = (np.stack(images).astype(np.float64) - mean)[:, 16:240, 16:240].transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = copy.deepcopy(model).double().eval()(torch.from_numpy(crops)).numpy()
    of_true_class = logits[np.arange(12), labels]
    loss = (np.log(np.exp(logits).sum(axis=1)) - of_true_class).sum()

    context = train_context(dataset, SOURCE145)
    for world_size in (1, 3):
        errors = LossAndErrors()
        for rank in range(world_size):
            loader = loader_of(dataset, rank=rank, world_size=world_size)
            errors.add(validate(model, loader, context))
        assert (errors.images, errors.top5_wrong) == (12, 0)
        assert errors.top1_wrong == (logits.argmax(axis=1) != labels).sum()
        assert 0 < errors.top1_wrong < 12
        assert errors.loss == pytest.approx(loss, rel=1e-4)
