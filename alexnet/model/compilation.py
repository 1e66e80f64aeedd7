"""The towers through ``torch.compile``, where the required compilers are installed."""

from collections.abc import Callable

import torch
from torch import Tensor

from alexnet.errors import one_line
from alexnet.model.towers import AlexNet

COMPILED_METHODS = ("before_conv3", "conv3_to_pool5", "conv6_maps", "hidden6", "hidden7")
"""Methods of a tower. Between them the towers exchange activations, which is not compiled."""

RECOMPILE_LIMIT = 64
"""Each method is compiled for every tower's device, for training and for evaluation, and again for
a larger batch. By default torch stops recompiling after 8 times."""


def compile_towers(network: AlexNet) -> str | None:
    """Compile each tower's methods at their first use after this call.

    They are compiled for one batch size. Smaller batches, such as the last one of an epoch, are
    computed without compiled code: torch would make the compiled code slower for all batches.
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
            setattr(tower, name, _compiled_for_the_largest_batch(tower, getattr(tower, name)))
    return None


def _compiled_for_the_largest_batch(
    tower: torch.nn.Module, method: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """``method`` of a tower; compiled, except for batches smaller than one before."""
    compiled = torch.compile(method, dynamic=False)
    largest = {True: 0, False: 0}  # In training and in evaluation.

    def run(x: Tensor, *others: Tensor | None) -> Tensor:
        largest[tower.training] = max(largest[tower.training], len(x))
        return (compiled if len(x) == largest[tower.training] else method)(x, *others)

    return run
