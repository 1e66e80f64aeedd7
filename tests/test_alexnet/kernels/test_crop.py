"""Images found by their addresses."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alexnet.kernels.crop import IMAGE_BYTES, addresses_of, copy_images


@given(rows=st.lists(st.integers(0, 3), max_size=9), seed=st.integers(0, 2**32 - 1))
def test_images_are_copied_from_their_addresses_in_order(rows: list[int], seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (4, 256, 256, 3), np.uint8)
    around = np.full(len(rows) * IMAGE_BYTES + 2, 7, np.uint8)
    copies = around[1:-1].reshape(len(rows), 256, 256, 3)
    copy_images(addresses_of(images)[rows], copies)
    assert np.array_equal(copies, images[rows])
    assert around[0] == around[-1] == 7, "nothing else is written"
