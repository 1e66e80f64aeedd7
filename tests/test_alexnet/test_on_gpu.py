"""What only a GPU can show: its kernels, streams, decoder and process groups. Skipped without one.

Everything else about GPUs is tested with fakes, in the tests of each module.
"""

from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from factories import (
    BATCH_SIZE,
    SEED,
    narrow_network,
    random_inputs,
    relative_error,
    start_training,
    train_context,
)
from PIL import Image
from reference_model import ALPHA, cross_map, within_map
from torch import Tensor

from alexnet.diagnostics.equivalence import compare, he_init
from alexnet.metrics import LossAndErrors
from alexnet.model.dropout import dropout_keys, dropout_mask
from alexnet.model.placement import place_towers
from alexnet.model.precision import set_tf32
from alexnet.recipes import PAPER, SOURCE145, Recipe
from alexnet.shards.codec import decode_into
from alexnet.shards.gpu_decode import check_gpu_decoding, decode_on_gpu
from alexnet.shards.loader import Batch, ShardLoader
from alexnet.shards.manifest import Manifest
from alexnet.training.augment import sample_augment_params, training_crops
from alexnet.training.checkpoint import (
    TrainState,
    load_checkpoint,
    save_checkpoint,
    take_snapshot,
)
from alexnet.training.ddp import DEFAULT_BACKEND, wrap_ddp
from alexnet.training.device_queue import SideStream, copy_to_device
from alexnet.training.loop import train_epoch, train_step
from alexnet.training.network import Execution, build_network
from alexnet.training.optimizer import (
    EpochRates,
    MomentumSGD,
    build_optimizer,
    set_rates,
    update_by_torch_operations,
)
from alexnet.training.validation import validate

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.slow,
]

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
RATES = EpochRates(0.001)
RECIPES = [pytest.param(PAPER, id="paper"), pytest.param(SOURCE145, id="source145")]
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True)
def _float32_products() -> None:
    set_tf32("float32")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", [(4, 48, 55, 55), (4, 128, 27, 27), (3, 9, 7, 13)], ids=str)
@pytest.mark.parametrize("within", [False, True])
def test_normalizations(
    within: bool, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    numbers = (True, 5, 1.0, 0.001 / 25) if within else (False, 5, 2.0, ALPHA["source145"])
    generator = torch.Generator().manual_seed(0)
    x, upstream = (
        (std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for std in (150, 1)
    )
    exact = x.double().requires_grad_()
    expected = within_map(exact) if within else cross_map(exact, ALPHA["source145"])
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
    leaf = x.to(GPU).contiguous(memory_format=layout).requires_grad_()
    y = torch.ops.alexnet.normalize(leaf, *numbers)
    (gradient,) = torch.autograd.grad(y, leaf, upstream.to(GPU))
    for result in (y, gradient):
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
    assert relative_error(y.cpu(), expected) < TOLERANCES[dtype]
    assert relative_error(gradient.cpu(), expected_gradient) < TOLERANCES[dtype]


def test_the_update_as_one_kernel() -> None:
    from alexnet.kernels.momentum import update_in_one_pass

    generator = torch.Generator(GPU).manual_seed(0)
    shape = 37, 41, 5, 5
    values = [torch.randn(shape, generator=generator, device=GPU) for _ in range(3)]
    exact = [value.double() for value in values]
    for rate in (0.01, 0.01, 0.001):
        for update, tensors in ((update_in_one_pass, values), (update_by_torch_operations, exact)):
            update(*tensors, momentum=0.9, decay=0.5 * rate, rate=rate)
    for value, expected in zip(values, exact, strict=True):
        assert relative_error(value, expected) < 1e-6


@pytest.mark.parametrize(("first", "units"), [(0, 2048), (2048, 2048), (4, 1031)])
def test_dropout_masks_are_those_of_the_cpu(first: int, units: int) -> None:
    keys = dropout_keys(3_000_000_000, 89, torch.tensor([0, 1, 1_281_166, 2**31 - 1]))
    for layer in (6, 7):
        mask = dropout_mask(keys.to(GPU), layer, first, units, 0.5)
        assert mask.device == GPU
        assert torch.equal(mask.cpu(), dropout_mask(keys, layer, first, units, 0.5))


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_and_gradients_equal_those_of_the_cpu_in_float64(recipe: Recipe) -> None:
    crops, labels = random_inputs(4, dtype=torch.float64), torch.arange(4)
    found: list[list[Tensor]] = []
    for device in (CPU, GPU):
        network = narrow_network(replace(recipe, dropout=0.0), classes=10).double()
        he_init(network)
        place_towers(network, [device])
        logits = network(crops.to(device))
        loss = torch.nn.functional.cross_entropy(logits, labels.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([logits, *(p.grad for p in network.parameters() if p.grad is not None)])
    for expected, actual in zip(*found, strict=True):
        assert relative_error(actual.cpu(), expected) < 1e-10
    assert compare(recipe, [GPU], 10).passed


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_of_an_epoch_are_those_of_the_cpu(dataset: Manifest, recipe: Recipe) -> None:
    recipe = replace(recipe, dropout=0.0)
    losses = []
    for device in (CPU, GPU):
        network, optimizer = start_training(recipe)
        place_towers(network, [device])
        losses.append([float(s.loss) for s in steps_of(dataset, network, optimizer, recipe)])
        validated = validate(network, loader(dataset), context(dataset, recipe, device))
        losses[-1].append(validated.loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_crops_of_a_second_stream_are_complete_when_they_are_used() -> None:
    """The first stream is busy, so that a missing wait would show values of another batch."""
    random = np.random.default_rng(0)
    stream = SideStream(GPU)
    mean = torch.full((3, 224, 224), 127.5)
    mean_on_gpu = mean.to(GPU)
    torch.cuda.synchronize()
    busy = torch.randn(4096, 4096, device=GPU)
    expected, sums = [], []
    for step in range(24):
        images = torch.from_numpy(random.integers(0, 256, (64, 256, 256, 3), np.uint8))
        params = sample_augment_params(SOURCE145, np.eye(3), 64, seed=0, epoch=0, offset=step)
        expected.append(training_crops(images, params, mean, 1.0).double().sum(dim=(1, 2, 3)))
        pinned = images.pin_memory()

        def crops(pinned: Tensor = pinned, params: Any = params) -> Tensor:
            return training_crops(copy_to_device(pinned, GPU), params, mean_on_gpu, 1.0)

        result = stream.run(crops)
        busy = (busy @ busy).clamp(-1, 1)
        sums.append(result.double().sum(dim=(1, 2, 3)))
        del result
    for actual, wanted in zip(sums, expected, strict=True):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-7, atol=1e-2)


def test_a_resumed_run_continues_and_a_snapshot_is_not_changed_by_later_steps(
    dataset: Manifest, tmp_path: Path
) -> None:
    recipe = replace(SOURCE145, dropout=0.5)
    whole, optimizer = start_training(recipe)
    place_towers(whole, [GPU])
    steps = train_epoch(
        whole, optimizer, loader(dataset), context(dataset, recipe, GPU), RATES, epoch=0
    )
    first = [float(step.loss) for step in islice(steps, 2)]
    weights = {name: p.detach().clone() for name, p in whole.named_parameters()}
    state = TrainState(offset=2 * BATCH_SIZE, step=2, epoch_errors=LossAndErrors())
    snapshot = take_snapshot(whole, optimizer, state, torch.zeros(3, 224, 224, device=GPU))
    rest = [float(step.loss) for step in steps]
    assert len(first) == 2
    assert rest
    for name, copy in snapshot.weights.items():
        assert torch.equal(copy, weights[name].cpu())
    save_checkpoint(str(tmp_path), snapshot)
    resumed, optimizer = start_training(recipe)
    place_towers(resumed, [GPU])
    load_checkpoint(str(tmp_path), resumed, optimizer)
    again = steps_of(dataset, resumed, optimizer, recipe, offset=2 * BATCH_SIZE)
    np.testing.assert_allclose([float(step.loss) for step in again], rest, rtol=1e-4)


def test_compiled_towers_compute_the_same_and_small_batches_too() -> None:
    recipe = replace(SOURCE145, dropout=0.0, hidden=64)
    networks = [
        build_network(recipe, 10, [GPU], 0, Execution(compile=compiled, channels_last=True))
        for compiled in (False, True)
    ]
    assert networks[1].not_compiled is None
    for count in (16, 16, 5):
        crops, labels = random_inputs(count, seed=count).to(GPU), torch.arange(count) % 10
        batch = Batch(crops, labels.to(GPU), np.arange(count), 0, count)
        losses = []
        for network, _ in networks:
            optimizer = build_optimizer(network, recipe)
            set_rates(optimizer, RATES)
            losses.append(float(train_step(network, optimizer, [crops], batch, 1).loss))
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_precisions_and_layouts_learn_alike(precision: Any) -> None:
    losses = []
    for channels_last in (False, True):
        recipe = replace(SOURCE145, dropout=0.0, hidden=64)
        how = Execution(precision=precision, channels_last=channels_last)
        network, _ = build_network(recipe, 10, [GPU], 0, how)
        optimizer = build_optimizer(network, recipe)
        set_rates(optimizer, EpochRates(0.01))
        crops, labels = random_inputs(16).to(GPU), torch.arange(16, device=GPU) % 10
        batch = Batch(crops, labels, np.arange(16), 0, 16)
        results = [
            train_step(network, optimizer, [crops], batch, 1, bf16=how.bf16) for _ in range(10)
        ]
        losses.append([float(step.loss) for step in results])
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)


def test_jpegs_decoded_by_the_gpu_differ_little_from_the_cpu() -> None:
    check_gpu_decoding(GPU)
    random = np.random.default_rng(0)
    stored = []
    for subsampling in ("4:4:4", "4:2:0", "4:2:0"):
        # Little colour: nvJPEG enlarges colours that were reduced (4:2:0) by another filter.
        grey, colours = random.integers(60, 180, (32, 32, 1)), random.integers(-20, 21, (32, 32, 3))
        picture = Image.fromarray((grey + colours).astype(np.uint8))
        buffer = BytesIO()
        picture.resize((256, 256), Image.Resampling.BICUBIC).save(
            buffer, "JPEG", quality=95, subsampling=subsampling
        )
        stored.append(np.frombuffer(buffer.getvalue(), np.uint8))
    by_gpu = torch.empty((3, 256, 256, 3), dtype=torch.uint8)
    decode_on_gpu(stored, by_gpu, GPU)
    by_cpu = np.empty((3, 256, 256, 3), np.uint8)
    for data, image in zip(stored, by_cpu, strict=True):
        decode_into(data, image)
    difference = np.abs(by_gpu.numpy().astype(int) - by_cpu)
    print(f"means {difference.mean(axis=(1, 2, 3))}, largest {difference.max(axis=(1, 2, 3))}")
    assert difference[0].max() <= 1
    assert difference.mean() < 1.5
    with pytest.raises(ValueError, match=r"\w"):
        decode_on_gpu([stored[0][:200]], by_gpu[:1], GPU)
    check_gpu_decoding(GPU)


def test_a_process_group_of_nccl_for_the_device(tmp_path: Path) -> None:
    """One process: NCCL refuses two on one GPU."""
    recipe = replace(SOURCE145, dropout=0.0)
    dist.init_process_group(
        DEFAULT_BACKEND, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        gradients = []
        for wrap in (False, True):
            network = narrow_network(recipe).double()
            he_init(network)
            place_towers(network, [GPU])
            optimizer = build_optimizer(network, recipe)
            set_rates(optimizer, RATES)
            model = wrap_ddp(network) if wrap else network
            crops = random_inputs(8, dtype=torch.float64).to(GPU)
            labels = torch.arange(8, device=GPU) % 3
            batch = Batch(crops, labels, np.arange(8), 0, 8)
            train_step(model, optimizer, [crops], batch, 1)
            gradients.append([p.grad for p in network.parameters()])
        for alone, averaged in zip(*gradients, strict=True):
            assert relative_error(averaged, alone) < 1e-5
    finally:
        dist.destroy_process_group()


def loader(dataset: Manifest) -> ShardLoader:
    return ShardLoader(manifest=dataset, batch_size=BATCH_SIZE, seed=SEED, pin_memory=True)


def context(dataset: Manifest, recipe: Recipe, device: torch.device) -> Any:
    return train_context(dataset, recipe, devices=[device])


def steps_of(
    dataset: Manifest, network: Any, optimizer: MomentumSGD, recipe: Recipe, *, offset: int = 0
) -> list[Any]:
    device = next(network.parameters()).device
    steps = train_epoch(
        network, optimizer, loader(dataset), context(dataset, recipe, device), RATES,
        epoch=0, offset=offset,
    )  # fmt: skip
    return list(steps)
