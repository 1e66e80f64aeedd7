"""Dropout masks: known answers, the same bits from every implementation, independence."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alexnet.model.dropout import dropout_keys, dropout_mask, mask_with_torch

WORD = 0xFFFFFFFF
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, [WORD] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
"""Counter, key and result of Philox 4x32-10, from the file ``kat_vectors`` of Random123."""
INTERPRET = """
import sys, torch
from alexnet.kernels.dropout_triton import fill_mask
cases = torch.load(sys.argv[1])
for keys, mask, *numbers in cases:
    fill_mask(keys, mask, *numbers)
torch.save(cases, sys.argv[1])
"""
words = st.integers(0, WORD)
places = st.integers(0, 2**31 - 1)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 as the paper writes it, with Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [c0, c1, c2, c3]


def keys_of(seed: int, epoch: int, *rows: int) -> Tensor:
    return dropout_keys(seed, epoch, torch.tensor(rows))


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_the_reference_gives_the_known_answers(
    counter: list[int], key: list[int], result: list[int]
) -> None:
    assert philox(counter, key) == result


@given(
    seed=words,
    epoch=places,
    row=places,
    layer=st.integers(0, 99),
    first=st.integers(0, 2**20).map(lambda quarter: 4 * quarter),
    units=st.integers(1, 11),
    probability=st.floats(0, 1, exclude_max=True),
)
def test_masks_are_those_of_the_reference(
    seed: int, epoch: int, row: int, layer: int, first: int, units: int, probability: float
) -> None:
    numbers = [
        number
        for quarter in range(first // 4, first // 4 + 3)
        for number in philox([quarter, row, epoch, layer], [seed, 0])
    ]
    expected = [number >= round(probability * 2**32) for number in numbers[:units]]
    keys = keys_of(seed, epoch, row)
    assert dropout_mask(keys, layer, first, units, probability)[0].tolist() == expected
    threshold = round(probability * 2**32)
    assert mask_with_torch(keys, layer, first, units, threshold)[0].tolist() == expected


@given(rows=st.lists(places, max_size=9), cut=st.integers(0, 9), unit=st.sampled_from([0, 4, 8]))
def test_masks_do_not_depend_on_how_images_and_units_are_divided(
    rows: list[int], cut: int, unit: int
) -> None:
    keys = keys_of(3, 1, *rows)
    whole = dropout_mask(keys, 6, 0, 12, 0.5)
    by_image = [dropout_mask(part, 6, 0, 12, 0.5) for part in (keys[:cut], keys[cut:])]
    assert torch.equal(torch.cat(by_image), whole)
    by_unit = [dropout_mask(keys, 6, 0, unit, 0.5), dropout_mask(keys, 6, unit, 12 - unit, 0.5)]
    assert torch.equal(torch.cat(by_unit, dim=1), whole)


def test_masks_are_independent_and_have_the_given_probability() -> None:
    masks = [
        dropout_mask(keys_of(seed, epoch, *range(row, row + 64)), layer, first, 512, 0.5)
        for seed, epoch, row, layer, first in itertools.product(
            (0, 1), (0, 1), (0, 64), (6, 7), (0, 512)
        )
    ]
    flat = torch.stack(masks).flatten(1).double().numpy()
    limit = 5 / flat.shape[1] ** 0.5
    assert np.abs(flat.mean(axis=1) - 0.5).max() < limit / 2
    correlations = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlations).max() < limit
    for probability in (0.0, 0.2, 0.9):
        kept = dropout_mask(keys_of(0, 0, *range(64)), 6, 0, 512, probability).double().mean()
        assert abs(float(kept) - (1 - probability)) < limit


@pytest.mark.slow
def test_the_kernel_for_gpus_gives_the_same_bits(tmp_path: Path) -> None:
    """Run by Triton's interpreter."""
    pytest.importorskip("triton")
    cases = []
    for (seed, epoch), (first, units) in itertools.product(
        [(7, 3), (WORD, 90), (3_000_000_000, 2**31 - 1)], [(0, 2048), (2048, 5), (4, 1030)]
    ):
        keys = keys_of(seed, epoch, 0, 5, 2**31 - 1)
        cases.append((keys, torch.zeros(3, units, dtype=torch.bool), 7, first, 2**31))
    path = tmp_path / "cases.pt"
    torch.save(cases, path)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRET, str(path)], env=environment, check=True)
    for keys, mask, layer, first, threshold in torch.load(path):
        assert torch.equal(mask, mask_with_torch(keys, layer, first, mask.shape[1], threshold))
        assert 0.3 < mask.double().mean() < 0.7 or mask.numel() < 100


def test_the_operator_is_registered_for_compilers() -> None:
    arguments = (keys_of(0, 0, 1, 2), 6, 0, 9, 2**31)
    torch.library.opcheck(torch.ops.alexnet.dropout_mask.default, arguments)
