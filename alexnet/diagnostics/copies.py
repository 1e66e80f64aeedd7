"""What is copied from one device to another, seen while it happens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alexnet.model.towers import AlexNet
from alexnet.recipes import LAYERS


class DeviceCopy(NamedTuple):
    """One tensor's way from a device to another."""

    source: torch.device
    target: torch.device
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: str = ""
    """The layer that waits for it, if ``CopyTracer.layers`` told."""

    @property
    def bytes(self) -> int:
        """How much is copied."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class CopyTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every operation is noted whose result lies on another device than an input.

    It sees the operations themselves, those of the backward pass too, not what the code means to
    do. Python is asked for each of them, so nothing inside should be timed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[DeviceCopy] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.found += [
            DeviceCopy(source.device, output.device, tuple(output.shape), output.dtype)
            for output in outputs
            for source in sources
            if source.device != output.device
        ]
        return result

    @contextmanager
    def layers(self, network: AlexNet) -> Iterator[None]:
        """Inside, each copy of a forward pass gets the name of the layer that runs next."""
        handles = []
        for name, module in network.named_modules():
            layer = name.rpartition(".")[2]
            if layer in LAYERS:
                handles.append(module.register_forward_pre_hook(partial(self._reached, layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reached(self, layer: str, *_: Any) -> None:
        self.found = [found._replace(layer=found.layer or layer) for found in self.found]
