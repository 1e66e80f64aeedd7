"""Training workers as processes of one computer, with gloo: what ``test_ddp`` runs in each."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from factories import narrow_network, random_inputs
from torch import Tensor, nn

from alexnet.diagnostics.equivalence import he_init
from alexnet.model.towers import AlexNet
from alexnet.recipes import SOURCE145
from alexnet.training.ddp import Compression, DevicePart, MultiDeviceDDP

SHARES = (2, 1, 0)
"""Images of each worker; one has none, as in a small last batch."""
COMPRESSIONS: tuple[Compression, ...] = ("none", "fp16", "bf16")
CLASSES = 4


def new_network(seed: int = 0) -> AlexNet:
    """A narrow network without dropout, in which the logits depend on the images."""
    network = narrow_network(replace(SOURCE145, dropout=0.0), CLASSES)
    he_init(network, seed)
    return network


def parts_by_tower(network: AlexNet) -> list[DevicePart]:
    """Those of a worker with two devices: the second tower alone, and everything else."""
    second = list(network.towers[1].parameters())
    others = [p for p in network.parameters() if not any(p is other for other in second)]
    groups = [cast(dist.ProcessGroup, dist.new_group(backend="gloo")) for _ in range(2)]
    return [DevicePart(p, group) for p, group in zip((others, second), groups, strict=True)]


def loss_of_share(model: nn.Module, rank: int) -> Tensor:
    """The loss that a worker differentiates, as ``loop.train_step`` scales it."""
    start, rows = sum(SHARES[:rank]), sum(SHARES)
    images = random_inputs(rows)[start : start + SHARES[rank]]
    labels = torch.arange(rows)[start : start + SHARES[rank]] % CLASSES
    return F.cross_entropy(model(images), labels, reduction="sum") * (len(SHARES) / rows)


def gradients_of(network: AlexNet) -> dict[str, Tensor]:
    """A copy of the gradients, by the parameters' names."""
    gradients = {}
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        gradients[name] = parameter.grad.clone()
    return gradients


def run_worker(rank: int, world_size: int, folder: str) -> None:
    """Save the averaged gradients of two backward passes in each format.

    The worker begins with weights of its own, which the wrapper replaces by those of rank 0. DDP
    arranges its buckets anew after the first backward pass.
    """
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    saved: dict[str, list[dict[str, Tensor]]] = {}
    for compression in COMPRESSIONS:
        network = new_network(seed=rank)
        replica = MultiDeviceDDP(network, parts_by_tower(network), compression)
        saved[compression] = []
        for _ in range(2):
            network.zero_grad()
            loss_of_share(replica, rank).backward()  # type: ignore[no-untyped-call]
            saved[compression].append(gradients_of(network))
    torch.save(saved, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
