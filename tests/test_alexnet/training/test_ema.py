"""The running average of the weights, in float64 NumPy."""

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
    kept = []
    for step in range(1, 16):
        kept.append(min(DECAY, (1 + step) / (10 + step)))
        for name, parameter in model.named_parameters():
            weights = random.normal(size=tuple(parameter.shape))
            parameter.data = torch.from_numpy(weights)
            expected[name] = kept[-1] * expected[name] + (1 - kept[-1]) * weights
        average.update(model, step)
    assert kept[0] < kept[5] < kept[14] == DECAY
    for name, weights in expected.items():
        np.testing.assert_allclose(average.weights[name].numpy(), weights, rtol=1e-13)
        assert not average.weights[name].requires_grad


def test_in_its_place_and_back() -> None:
    model = nn.Linear(3, 2)
    average = EMA(model, DECAY)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.update(model, 1)
    parameter = model.weight
    learned, kept = model.weight.detach().clone(), average.weights["weight"].clone()
    assert not torch.equal(learned, kept)
    with average.in_place(model):
        assert model.weight is parameter, "an optimizer goes on with the same parameter"
        assert torch.equal(model.weight, kept)
    assert torch.equal(model.weight, learned)
    assert torch.equal(average.weights["weight"], kept)
    with pytest.raises(RuntimeError), average.in_place(model):
        raise RuntimeError
    assert torch.equal(model.weight, learned)
