"""Training that repeats bit for bit, and arithmetic that is checked against NumPy."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from factories import he_init, narrow_network, relative_error
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alexnet.metrics import Errors
from alexnet.model.towers import AlexNet, Dropout
from alexnet.recipes import PAPER, RECIPES, SOURCE145, Recipe
from alexnet.shards.format import Manifest
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.shards.pixel_stats import PixelStatistics, read_statistics
from alexnet.training.augment import draw, mean_crop, pca_axes
from alexnet.training.checkpoint import TrainState, load, save, snapshot
from alexnet.training.loop import Step, TrainContext, total, train_epoch, train_step, validate
from alexnet.training.optimizer import EpochRates, MomentumSGD, build_optimizer, set_rates

ROWS, SIZE = 39, 8
"""Training rows of the data set, and of a global batch."""
SEED = 5
MEAN = torch.zeros(3, 224, 224)


def statistics_of(dataset: Manifest) -> PixelStatistics:
    return read_statistics(str(Path(dataset.folder) / "statistics.npz"))


def setup_of(dataset: Manifest, recipe: Recipe, seed: int = SEED) -> TrainContext:
    statistics = statistics_of(dataset)
    return TrainContext(
        recipe=recipe,
        means=[mean_crop(statistics.mean_image)],
        axes=pca_axes(recipe, statistics.rgb_covariance),
        seed=seed,
    )


def start(recipe: Recipe, learning_rate: float = 0.001) -> tuple[AlexNet, MomentumSGD]:
    model = narrow_network(recipe)
    optimizer = build_optimizer(model, recipe)
    set_rates(optimizer, EpochRates(learning_rate))
    return model, optimizer


def steps_of(
    dataset: Manifest,
    model: AlexNet,
    optimizer: MomentumSGD,
    recipe: Recipe,
    *,
    count: int | None = None,
    offset: int = 0,
    size: int = SIZE,
    seed: int = SEED,
    epoch: int = 1,
    rank: int = 0,
    world: int = 1,
) -> list[Step]:
    reader = ShardLoader(manifest=dataset, batch_size=size, seed=seed, rank=rank, world=world)
    setup = setup_of(dataset, recipe, seed)
    steps = train_epoch(
        model, optimizer, reader, setup, EpochRates(0.001), epoch=epoch, offset=offset
    )
    assert isinstance(steps, Iterator)
    with closing(steps):
        return list(itertools.islice(steps, count))


def weights_of(model: AlexNet) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_weights(first: AlexNet, second: AlexNet) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_one_seed_gives_the_same_losses_bit_for_bit(dataset: Manifest, recipe: Recipe) -> None:
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # Nothing may depend on it.
        model, optimizer = start(recipe)
        steps = steps_of(dataset, model, optimizer, recipe, count=3)
        runs.append((model, [float(step.loss) for step in steps]))
    assert runs[0][1] == runs[1][1]
    assert same_weights(runs[0][0], runs[1][0])
    other, optimizer = start(recipe)
    steps = steps_of(dataset, other, optimizer, recipe, count=1, seed=SEED + 1)
    assert float(steps[0].loss) != runs[0][1][0]


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    dataset: Manifest, tmp_path: Path
) -> None:
    unbroken, optimizer = start(SOURCE145)
    before = steps_of(dataset, unbroken, optimizer, SOURCE145, count=2)
    position = TrainState(epoch=1, offset=before[-1].offset, step=2)
    save(str(tmp_path), snapshot(unbroken, optimizer, position, MEAN))
    after = steps_of(dataset, unbroken, optimizer, SOURCE145, offset=position.offset)

    # Another process, whose network begins with other weights.
    torch.manual_seed(99)
    resumed = narrow_network(SOURCE145, seed=1234)
    its_optimizer = build_optimizer(resumed, SOURCE145)
    loaded = load(str(tmp_path), resumed, its_optimizer)
    assert loaded == position
    set_rates(its_optimizer, EpochRates(0.001))
    again = steps_of(dataset, resumed, its_optimizer, SOURCE145, offset=loaded.offset)

    # And one that never looked back.
    whole, whole_optimizer = start(SOURCE145)
    all_steps = steps_of(dataset, whole, whole_optimizer, SOURCE145)
    losses = [float(step.loss) for step in all_steps]
    assert [float(step.loss) for step in before + after] == losses
    assert [float(step.loss) for step in before + again] == losses
    assert same_weights(resumed, whole)
    assert same_weights(unbroken, whole)
    pairs = zip(resumed.parameters(), whole.parameters(), strict=True)
    assert all(
        torch.equal(its_optimizer.velocity(a), whole_optimizer.velocity(b)) for a, b in pairs
    )


@pytest.mark.parametrize(
    ("world", "size", "offset"),
    [
        (2, 7, 0),  # 4 and 3 images
        (3, 7, 35),  # the last batch: 2, 1 and 1 of 4
        (2, 38, 38),  # one image left: 1 and none
    ],
)
def test_unequal_shares_average_to_the_gradient_of_the_whole(
    dataset: Manifest, world: int, size: int, offset: int
) -> None:
    recipe = replace(SOURCE145, dropout=0.0)

    def gradients(rank: int, workers: int) -> tuple[dict[str, Tensor], Step]:
        model, optimizer = start(recipe, learning_rate=0.0)
        he_init(model)
        (step,) = steps_of(
            dataset, model, optimizer, recipe,
            count=1, offset=offset, size=size, rank=rank, world=workers,
        )  # fmt: skip
        found = {}
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            found[name] = parameter.grad
        return found, step

    whole, alone = gradients(0, 1)
    shares = [gradients(rank, world) for rank in range(world)]
    assert sum(step.images for _, step in shares) == alone.images == alone.rows
    assert {(step.rows, step.offset) for _, step in shares} == {(alone.rows, alone.offset)}
    assert float(alone.loss) == pytest.approx(sum(float(step.loss) for _, step in shares), 1e-5)
    for name, gradient in whole.items():
        average = torch.stack([share[name] for share, _ in shares]).mean(dim=0)
        assert gradient.norm() > 0
        assert relative_error(average, gradient) < 1e-4, name


def test_the_gradient_is_that_of_the_mean_loss(dataset: Manifest) -> None:
    recipe = replace(PAPER, dropout=0.0)
    model, optimizer = start(recipe, learning_rate=0.0)
    he_init(model)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    reader = ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED)
    (step,) = steps_of(dataset, model, optimizer, recipe, count=1)
    first = next(iter(reader.epoch(1)))
    found = {name: p.grad for name, p in model.named_parameters()}
    logits = model(seen[0]).log_softmax(dim=1)
    mean = -logits[torch.arange(SIZE), first.labels].mean()
    expected = torch.autograd.grad(mean, list(model.parameters()))
    for (name, gradient), one in zip(found.items(), expected, strict=True):
        assert gradient is not None
        assert relative_error(gradient, one) < 1e-5, name
    assert float(step.loss) == pytest.approx(SIZE * float(mean.detach()), rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("noise", [True, False])
def test_what_the_network_is_shown(dataset: Manifest, recipe: Recipe, noise: bool) -> None:
    model, optimizer = start(recipe)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    reader, setup = (
        ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED),
        setup_of(dataset, recipe),
    )
    rates = EpochRates(0.001, colour_noise=noise)
    next(train_epoch(model, optimizer, reader, setup, rates, epoch=4, offset=16))
    batch = next(reader.epoch(4, 16))
    draws = draw(recipe, setup.axes, SIZE, seed=SEED, epoch=4, offset=16, colour_noise=noise)
    # The 2012 source divides by 1 + the noise's deviation, and that is 0 from epoch 67 on.
    scale = 1 / 1.1 if recipe is SOURCE145 and noise else 1.0
    mean = statistics_of(dataset).mean_image[16:240, 16:240].astype(np.float64)
    for i, position in enumerate(batch.positions.tolist()):
        top, left = draws.corners[position]
        crop = batch.images[i].numpy()[top : top + 224, left : left + 224]
        crop = crop[:, ::-1] if draws.flips[position] else crop
        expected = (crop - mean + draws.colours[position]) * scale
        np.testing.assert_allclose(seen[0][i].numpy(), expected.transpose(2, 0, 1), atol=1e-4)
    assert bool(draws.colours.any()) == noise


def test_steps_count_what_numpy_counts(dataset: Manifest) -> None:
    recipe = replace(SOURCE145, dropout=0.0)
    model, optimizer = start(recipe)
    outputs: list[NDArray[np.float64]] = []
    model.register_forward_hook(
        lambda _, inputs, output: outputs.append(output.detach().double().numpy())
    )
    steps = steps_of(dataset, model, optimizer, recipe)
    batches = list(ShardLoader(manifest=dataset, batch_size=SIZE, seed=SEED).epoch(1))
    assert [step.images for step in steps] == [8, 8, 8, 8, 7]
    assert [step.offset for step in steps] == [8, 16, 24, 32, 39]
    top1_wrong = loss = 0.0
    for logits, batch in zip(outputs, batches, strict=True):
        labels = batch.labels.numpy()
        top1_wrong += (logits.argmax(axis=1) != labels).sum()
        truth = logits[np.arange(len(labels)), labels]
        loss += (np.log(np.exp(logits).sum(axis=1)) - truth).sum()
    found = total(steps)
    assert (found.images, found.top1_wrong, found.top5_wrong) == (ROWS, top1_wrong, 0)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert 0 < found.top1_wrong <= ROWS


def test_top_five_of_a_step() -> None:
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
    # The best five are 11, 10, 9, 8 and 7.
    assert (int(step.top1_wrong), int(step.top5_wrong)) == (4, 2)
    assert (step.images, step.rows, step.offset) == (5, 5, 15)


def test_dropout_masks_are_the_step_s_and_the_worker_s_own(dataset: Manifest) -> None:
    def masks(noise: int, epoch: int, offset: int, rank: int) -> Tensor:
        torch.manual_seed(noise)
        model, optimizer = start(PAPER)
        found: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, Dropout):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0 + 1,))
                module.register_forward_hook(lambda _, inputs, output: found.append(output != 0))
        steps_of(
            dataset, model, optimizer, PAPER,
            count=1, epoch=epoch, offset=offset, rank=rank, world=2,
        )  # fmt: skip
        return torch.stack(found)

    first = masks(0, 1, 8, 0)
    assert tuple(first.shape) == (4, 4, 24), "fc6 and fc7 of two towers, half of a batch of 8"
    assert torch.equal(first, masks(1, 1, 8, 0)), "the generator's earlier state does not matter"
    for other in (masks(0, 2, 8, 0), masks(0, 1, 16, 0), masks(0, 1, 8, 1), first.flip(0)):
        agreement = (first == other).float().mean()
        assert 0.3 < agreement < 0.7


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_against_a_direct_computation(dataset: Manifest, world: int) -> None:
    model = narrow_network(SOURCE145)
    he_init(model)
    model.train()
    images, labels = [], []
    for shard in dataset.shards["val"]:
        table = pq.read_table(Path(dataset.folder) / shard.file)
        labels += table["label"].to_pylist()
        images += [np.asarray(Image.open(BytesIO(data))) for data in table["image"].to_pylist()]
    mean = statistics_of(dataset).mean_image
    patches = (np.stack(images).astype(np.float64) - mean)[:, 16:240, 16:240].transpose(0, 3, 1, 2)
    precise = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        logits = precise(torch.from_numpy(patches)).numpy()
    truth = logits[np.arange(12), labels]
    loss = (np.log(np.exp(logits).sum(axis=1)) - truth).sum()

    setup, found = setup_of(dataset, SOURCE145), Errors()
    for rank in range(world):
        found.add(validate(model, dataset, setup, rank=rank, world=world))
    assert (found.images, found.top5_wrong) == (12, 0)
    assert found.top1_wrong == (logits.argmax(axis=1) != labels).sum()
    assert 0 < found.top1_wrong < 12
    assert found.loss == pytest.approx(loss, rel=1e-4)
