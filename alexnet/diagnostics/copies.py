"""A tracer of the copies between devices."""

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
    """The copy of one tensor from one device to another."""

    source: torch.device
    target: torch.device
    shape: tuple[int, ...]
    dtype: torch.dtype
    layer: str = ""
    """The layer that uses it, if ``CopyTracer.layers`` is active."""

    @property
    def bytes(self) -> int:
        """Size of the copied tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class CopyTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that records each operation whose result is on another device than an input.

    It records the operations that are executed, including those of the backward pass. It runs
    Python code for each of them, so execution times are not meaningful inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: list[DeviceCopy] = []

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
        self.copies += [
            DeviceCopy(source.device, output.device, tuple(output.shape), output.dtype)
            for output in outputs
            for source in sources
            if source.device != output.device
        ]
        return result

    @contextmanager
    def layers(self, network: AlexNet) -> Iterator[None]:
        """A context in which each copy of a forward pass gets the name of the next layer."""
        handles = []
        for name, module in network.named_modules():
            layer = name.rpartition(".")[2]
            if layer in (*LAYERS, "conv6"):
                handles.append(module.register_forward_pre_hook(partial(self._set_layer, layer)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _set_layer(self, layer: str, *_: Any) -> None:
        self.copies = [copy._replace(layer=copy.layer or layer) for copy in self.copies]
