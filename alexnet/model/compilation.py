"""The towers through ``torch.compile``, where the machine has the compilers for it."""

import torch

from alexnet.errors import one_line
from alexnet.model.towers import AlexNet

PARTS = ("before_conv3", "conv3_to_pool5", "hidden6", "hidden7")
"""Methods of a tower; what lies between them moves data from tower to tower."""

RECOMPILATIONS = 64
"""Each part is compiled for every tower's device, for training and testing, and again when the
size of the batch changes; torch gives up after 8 by default."""


def compile_towers(network: AlexNet) -> str | None:
    """Have each tower's parts compiled when they are first used, from then on.

    Outputs differ in the last digits from those of a network that is not compiled.

    Returns:
        None, or in one line why this machine can't; the network is then as it was.
    """
    for device in {parameter.device for parameter in network.parameters()}:
        try:
            torch.compile(torch.nn.Softplus())(torch.ones(64, device=device))
        except Exception as error:  # A missing compiler shows in many ways.
            return f"no working compiler for {device.type} ({one_line(error)[:200]})"
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    for tower in network.towers:
        for name in PARTS:
            setattr(tower, name, torch.compile(getattr(tower, name)))
    return None
