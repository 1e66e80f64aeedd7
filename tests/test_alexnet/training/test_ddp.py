"""Gradients in two bytes, in a process group of one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from factories import narrow_network, random_inputs
from torch import Tensor

from alexnet.diagnostics.equivalence import he_init
from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER
from alexnet.training.ddp import Compression, wrap_ddp


@pytest.fixture(scope="module", autouse=True)
def _process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients_of(model: torch.nn.Module, network: AlexNet) -> dict[str, Tensor]:
    network.eval()  # Without dropout.
    model.zero_grad()
    F.cross_entropy(model(random_inputs(2)), torch.tensor([3, 1])).backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        gradients[name] = parameter.grad.clone()
    return gradients


@pytest.mark.parametrize(
    ("compression", "dtype"),
    [("none", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_gradients_are_rounded_to_the_format(compression: Compression, dtype: torch.dtype) -> None:
    network = narrow_network(PAPER)
    he_init(network)
    expected = gradients_of(network, network)
    gradients = gradients_of(wrap_ddp(network, compression), network)
    changed = 0
    for name, gradient in expected.items():
        assert gradients[name].dtype == torch.float32
        assert torch.equal(gradients[name], gradient.to(dtype).float()), name
        changed += int((gradients[name] != gradient).sum())
    assert (changed > 0) == (compression != "none")


def test_precision_and_range_of_the_formats() -> None:
    small = torch.tensor(1e-9)
    assert small.half() == 0
    assert small.bfloat16() != 0
    above_one = 1 + torch.tensor([2.0**-10, 2.0**-7, 2.0**-8])
    np.testing.assert_array_equal((above_one.half() > 1).numpy(), [True, True, True])
    np.testing.assert_array_equal((above_one.bfloat16() > 1).numpy(), [False, True, False])
