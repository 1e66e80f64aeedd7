"""The towers through ``torch.compile``, where the required compilers are installed."""

import torch

from alexnet.errors import one_line
from alexnet.model.towers import AlexNet

COMPILED_METHODS = ("before_conv3", "conv3_to_pool5", "hidden6", "hidden7")
"""Methods of a tower. Between them the towers exchange activations, which is not compiled."""

RECOMPILE_LIMIT = 64
"""Each method is compiled for every tower's device, for training and for evaluation, and again
when the batch size changes. By default torch stops recompiling after 8 times."""


def compile_towers(network: AlexNet) -> str | None:
    """Compile each tower's methods at their first use after this call.

    Outputs differ in the last digits from those of a network that is not compiled.

    Returns:
        None, or one line that explains why compilation does not work here. The network is then
        unchanged.
    """
    for device in {parameter.device for parameter in network.parameters()}:
        try:
            torch.compile(torch.nn.Softplus())(torch.ones(64, device=device))
        except Exception as error:  # A missing compiler raises many kinds of errors.
            return f"no working compiler for {device.type} ({one_line(error)[:200]})"
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for tower in network.towers:
        for name in COMPILED_METHODS:
            setattr(tower, name, torch.compile(getattr(tower, name)))
    return None
