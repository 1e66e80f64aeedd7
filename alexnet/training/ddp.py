"""Workers that learn together: each has the whole network, and their gradients are averaged."""

from typing import Literal

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from alexnet.model.towers import AlexNet

Compression = Literal["none", "fp16", "bf16"]

HOOKS = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}


def wrap_ddp(network: AlexNet, compression: Compression = "none") -> DistributedDataParallel:
    """The network as one of the process group's replicas.

    ``compression``: gradients travel between workers in two bytes instead of four. ``fp16`` keeps
    11 binary digits but loses what is smaller than 6e-8; ``bf16`` keeps 8 digits of any size.
    Each worker's own sums stay float32.
    """
    # All towers are parameters of one process, so no device ids are given.
    replica = DistributedDataParallel(network)
    if compression != "none":
        replica.register_comm_hook(None, HOOKS[compression])
    return replica
