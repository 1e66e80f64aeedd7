"""The moving average of the weights, against float64 NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from alexnet.training.ema import EMA

DECAY = 0.6


def test_the_average_after_some_updates() -> None:
    random = np.random.default_rng(1)
    model = nn.Linear(3, 2).double()
    average = EMA(model, DECAY)
    expected = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    decays = []
    for step in range(1, 16):
        decays.append(min(DECAY, (1 + step) / (10 + step)))
        for name, parameter in model.named_parameters():
            weights = random.normal(size=tuple(parameter.shape))
            parameter.data = torch.from_numpy(weights)
            expected[name] = decays[-1] * expected[name] + (1 - decays[-1]) * weights
        average.update(model, step)
    assert decays[0] < decays[5] < decays[14] == DECAY
    for name, weights in expected.items():
        np.testing.assert_allclose(average.weights[name].numpy(), weights, rtol=1e-13)
        assert not average.weights[name].requires_grad


def test_swapped_exchanges_the_weights_and_restores_them() -> None:
    model = nn.Linear(3, 2)
    average = EMA(model, DECAY)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.update(model, 1)
    parameter = model.weight
    trained, averaged = model.weight.detach().clone(), average.weights["weight"].clone()
    assert not torch.equal(trained, averaged)
    with average.swapped(model):
        assert model.weight is parameter, "an optimizer keeps its parameters"
        assert torch.equal(model.weight, averaged)
    assert torch.equal(model.weight, trained)
    assert torch.equal(average.weights["weight"], averaged)
    with pytest.raises(RuntimeError), average.swapped(model):
        raise RuntimeError
    assert torch.equal(model.weight, trained)
