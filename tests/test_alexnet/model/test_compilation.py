"""Which batches the compiled towers compute; ``torch.compile`` is replaced by a recorder."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from factories import random_inputs
from torch import Tensor

from alexnet.model.compilation import COMPILED_METHODS, compile_towers
from alexnet.model.towers import AlexNet, initialize
from alexnet.recipes import PAPER


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of each call of a compiled method."""
    sizes: list[int] = []

    def compile(
        function: Callable[..., Tensor], *, dynamic: bool | None = None
    ) -> Callable[..., Tensor]:
        def run(x: Tensor, *mask: Tensor | None) -> Tensor:
            assert dynamic is False or isinstance(function, torch.nn.Softplus)
            sizes.append(len(x))
            return function(x, *mask)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    return sizes


def test_smaller_batches_are_not_compiled(compiled_sizes: list[int]) -> None:
    network = AlexNet(replace(PAPER, hidden=48, dropout=0.0), 10)
    initialize(network, network.recipe, 0)
    crops = random_inputs(3)
    expected = {count: network(crops[:count]) for count in (1, 2, 3)}
    assert compile_towers(network) is None
    methods = 2 * len(COMPILED_METHODS)

    def sizes_of(*counts: int) -> list[int]:
        compiled_sizes.clear()
        for count in counts:
            assert torch.equal(network(crops[:count]), expected[count])
        return compiled_sizes[::methods]

    assert sizes_of(2, 2, 1, 2) == [2, 2, 2], "the last batch of an epoch is smaller"
    network.eval()
    assert sizes_of(1, 1) == [1, 1], "row groups of the validation have a size of their own"
    network.train()
    # A training that resumed at the last batch of an epoch.
    assert sizes_of(3, 2, 3, 1) == [3, 3]
