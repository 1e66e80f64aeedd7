"""Data-parallel training: each worker has the whole network, and gradients are averaged."""

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
    """Wrap the network so that the process group's workers average their gradients.

    ``compression``: the format in which gradients are sent between workers, two bytes instead of
    four. ``fp16`` keeps 11 significant bits but turns values below 6e-8 into 0; ``bf16`` keeps 8
    significant bits of any value. Each worker's own gradients stay float32.
    """
    # No ``device_ids``: the parameters of one process may be on several devices.
    replica = DistributedDataParallel(network)
    if compression != "none":
        replica.register_comm_hook(None, HOOKS[compression])
    return replica
