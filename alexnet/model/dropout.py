"""Dropout whose masks depend on the image, and not on how the images are divided or computed.

Whether a unit is kept is a function of the seed, the epoch, the image's place in the epoch, the
layer and the unit. So the masks are the same for any number of workers, on any device, and after a
restart. The random numbers are those of Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel
random numbers: as easy as 1, 2, 3", SC 2011), a function of a counter of four 32-bit words and a
key of two: the counter is (unit // 4, place in the epoch, epoch, layer), the key is (seed, 0), and
each result is four numbers, for four units. A compiled loop computes them on CPUs, a Triton kernel
on GPUs, and torch operations elsewhere, all with the same bits.
"""

import torch
from torch import Tensor, nn

from alexnet.kernels.jit import parallel_over_batch

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF


class Dropout(nn.Module):
    """Dropout as it was in 2012: zeros in training, scaled outputs in evaluation.

    Today's dropout scales the kept units up in training instead. Both are the same function up to
    the scale of the weights. But with equal initial weights and learning rates they learn
    differently: the outputs of fc6 and fc7 start near their bias, 1, and doubling them makes the
    first updates of fc8 four times as large (paper, section 4.2).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Take and return (N, units); ``mask`` is that of ``dropout_mask``, for training."""
        if not self.training:
            return x * (1 - self.probability)
        return x if mask is None else x * mask


def dropout_keys(seed: int, epoch: int, rows: Tensor) -> Tensor:
    """What the masks of some images depend on.

    Args:
        seed: of the training, less than 2**32.
        epoch: from 0.
        rows: (B,) int64, each image's place in the epoch.

    Returns:
        (B, 3) int64: seed, epoch and place, for each image.
    """
    assert 0 <= seed <= WORD
    constants = torch.tensor([seed, epoch], device=rows.device).expand(len(rows), 2)
    return torch.cat([constants, rows[:, None]], dim=1)


def dropout_mask(keys: Tensor, layer: int, first: int, units: int, probability: float) -> Tensor:
    """Whether each unit of each image is kept.

    Args:
        keys: (B, 3) int64, from ``dropout_keys``.
        layer: a number for the layer; different ones have independent masks.
        first: number of the first unit within the layer, a multiple of 4.
        units: how many.
        probability: with which a unit is set to zero.

    Returns:
        (B, units) bool on the device of the keys.
    """
    assert first % 4 == 0
    threshold = round(probability * 2**32)
    mask: Tensor = torch.ops.alexnet.dropout_mask(keys, layer, first, units, threshold)
    return mask


torch.library.define(
    "alexnet::dropout_mask",
    "(Tensor keys, int layer, int first, int units, int threshold) -> Tensor",
)


@torch.library.impl("alexnet::dropout_mask", "CPU")
def _mask_on_cpu(keys: Tensor, layer: int, first: int, units: int, threshold: int) -> Tensor:
    # Imported here, because it imports the compiler, which GPUs don't need.
    from alexnet.kernels.dropout import fill_mask

    mask = torch.empty((len(keys), units), dtype=torch.bool)
    parallel_over_batch(fill_mask, [keys.numpy(), mask.numpy()], layer, first, threshold)
    return mask


@torch.library.impl("alexnet::dropout_mask", "CUDA")
def _mask_on_gpu(keys: Tensor, layer: int, first: int, units: int, threshold: int) -> Tensor:
    try:
        from alexnet.kernels.dropout_triton import fill_mask
    except ImportError:
        return mask_with_torch(keys, layer, first, units, threshold)
    mask = torch.empty((len(keys), units), dtype=torch.bool, device=keys.device)
    fill_mask(keys, mask, layer, first, threshold)
    return mask


@torch.library.register_fake("alexnet::dropout_mask")  # type: ignore[untyped-decorator]
def _fake_mask(keys: Tensor, layer: int, first: int, units: int, threshold: int) -> Tensor:
    return keys.new_empty((len(keys), units), dtype=torch.bool)


def mask_with_torch(keys: Tensor, layer: int, first: int, units: int, threshold: int) -> Tensor:
    """The masks in torch operations, for devices without a kernel of their own.

    Args and result are those of ``dropout_mask``, but ``threshold`` is the probability times 2**32.
    """
    seed, epoch, row = keys[:, :, None].unbind(1)  # (B, 1) each.
    quarters = torch.arange(first // 4, first // 4 + -(-units // 4), device=keys.device)
    # (B, units / 4) int64 each: 32-bit words.
    words = [quarters + 0 * row, row + 0 * quarters, epoch + 0 * quarters, 0 * quarters + layer]
    key = [seed, torch.zeros_like(seed)]
    for _ in range(ROUNDS):
        # The product of two words, modulo 2**64; its words don't depend on the sign.
        products = [words[2 * i] * multiplier for i, multiplier in enumerate(MULTIPLIERS)]
        low, high = [p & WORD for p in products], [(p >> 32) & WORD for p in products]
        words = [high[1] ^ words[1] ^ key[0], low[1], high[0] ^ words[3] ^ key[1], low[0]]
        key = [(k + step) & WORD for k, step in zip(key, KEY_STEPS, strict=True)]
    return (
        torch.stack([w.expand(len(keys), -1) for w in words], dim=2).flatten(1)[:, :units]
        >= threshold
    )
