"""Gradients that travel in two bytes, in a process group of one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from factories import he_init, narrow_network
from torch import Tensor

from alexnet.model.towers import AlexNet
from alexnet.recipes import PAPER
from alexnet.training.ddp import Compression, wrap_ddp


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = torch._C._distributed_c10d.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model: torch.nn.Module, network: AlexNet) -> dict[str, Tensor]:
    network.eval()  # No dropout.
    generator = torch.Generator().manual_seed(1)
    patches = 70 * torch.randn((2, 3, 224, 224), generator=generator)
    model.zero_grad()
    F.cross_entropy(model(patches), torch.tensor([3, 1])).backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
    return found


@pytest.mark.parametrize(
    ("compression", "dtype"),
    [("none", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_gradients_arrive_rounded_and_nothing_else(
    compression: Compression, dtype: torch.dtype
) -> None:
    network = narrow_network(PAPER)
    he_init(network)
    expected = gradients(network, network)
    found = gradients(wrap_ddp(network, compression), network)
    changed = 0
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], gradient.to(dtype).float()), name
        changed += int((found[name] != gradient).sum())
    assert (changed > 0) == (compression != "none")


def test_what_the_formats_keep() -> None:
    small = torch.tensor(1e-9)
    assert small.half() == 0
    assert small.bfloat16() != 0
    ones = 1 + torch.tensor([2.0**-10, 2.0**-7, 2.0**-8])
    np.testing.assert_array_equal((ones.half() > 1).numpy(), [True, True, True])
    np.testing.assert_array_equal((ones.bfloat16() > 1).numpy(), [False, True, False])
