"""Devices for tests of placement on a computer without GPUs.

Two kinds are here. ``FakeDeviceMode`` computes real numbers: its tensors are stored and computed on
the CPU, but report another device. Autograd and the optimizer are the real ones. An operation on
tensors of different devices raises an error, as it does with GPUs, and each device but the first
has its own random generator. ``shapes_only`` is torch's ``FakeTensorMode``, whose tensors have a
device and a shape but no values, so that networks of full size need no memory.

A tensor of ``FakeDeviceMode`` has two device names. Autograd sees ``meta:0`` and ``meta:1``. These
devices have no threads and streams, so the backward pass runs in the calling thread. (With a
backend that is registered from Python, torch 2.14 supports only one device: autograd refuses a
second one.) Python sees ``xla:0`` and ``xla:1``: ``torch.autocast`` supports this device type, and
it needs no initialization.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
GPU0, GPU1 = torch.device("cuda:0"), torch.device("cuda:1")
"""Devices for ``shapes_only``."""
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
BLOCKING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}
"""The CPU waits for the result of these operations, or for its shape."""
RANDOM = {aten.native_dropout.default, aten.bernoulli_.float, aten.bernoulli.default}


def shapes_only() -> FakeTensorMode:
    """A context in which ``place_towers`` moves real weights to ``GPU0`` and ``GPU1``.

    A build of torch without CUDA would abort the process at the first convolution.
    """
    if torch.version.cuda is None:
        pytest.skip("needs a build of torch with CUDA, but no GPU")
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_device(number: int) -> torch.device:
    """The fake device with a number."""
    return torch.device("xla", number)


class FakeDeviceTensor(Tensor):
    """A tensor that reports a fake device. Its values are in ``cpu_tensor``."""

    cpu_tensor: Tensor
    number: int

    @staticmethod
    def __new__(cls, cpu_tensor: Tensor, number: int) -> "FakeDeviceTensor":
        wrapper: FakeDeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            cpu_tensor.shape,
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=torch.device("meta", number),
        )
        wrapper.cpu_tensor, wrapper.number = cpu_tensor, number
        return wrapper

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return fake_device(self.number)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.cpu_tensor!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return run_on_cpu(func, args, kwargs or {})


class FakeDeviceMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which tensors can be moved to fake devices and created on them.

    ``operations`` lists all operations on tensors of fake devices. ``waits`` lists those for which
    the CPU would wait for a GPU: its own and blocking copies to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generators = [torch.Generator() for _ in range(2)]
        self.operations: list[Callable[..., Any]] = []
        self.waits: list[Callable[..., Any]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        numbers = {leaf.number for leaf in tree_leaves(args) if isinstance(leaf, FakeDeviceTensor)}
        if numbers or _number((kwargs or {}).get("device")) is not None:
            self.operations.append(func)
        if numbers and (func in BLOCKING or _is_blocking_copy(func, args, kwargs or {})):
            self.waits.append(func)
        if func in RANDOM and numbers - {0}:
            with torch.random.fork_rng(devices=[]):
                generator = self.generators[max(numbers)]
                torch.set_rng_state(generator.get_state())
                result = run_on_cpu(func, args, kwargs or {})
                generator.set_state(torch.get_rng_state())
            return result
        return run_on_cpu(func, args, kwargs or {})


def _is_blocking_copy(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> bool:
    """Whether a tensor of a fake device is copied to the CPU before the CPU continues."""
    if func is aten.copy_.default:
        target = args[0].device
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    elif func is aten._to_copy.default:
        target, non_blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
    else:
        return False
    return target is not None and target.type == "cpu" and not non_blocking


def run_on_cpu(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU. The result is on the device where real tensors would be."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    fake = [leaf for leaf in leaves if isinstance(leaf, FakeDeviceTensor)]
    numbers = {leaf.number for leaf in fake}
    # Torch allows CPU tensors without dimensions, which are numbers, in operations on any device.
    real = [leaf for leaf in leaves if not isinstance(leaf, FakeDeviceTensor) and leaf.dim()]
    if func not in COPIES and (len(numbers) > 1 or (numbers and real)):
        devices = ", ".join(sorted({str(leaf.device) for leaf in leaves}))
        raise RuntimeError(f"{func}: tensors on more than one device: {devices}")
    result = func(*tree_map(_without_wrapper, args), **tree_map(_without_wrapper, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if "device" in kwargs and kwargs["device"] is not None:
        number = _number(kwargs["device"])
    else:
        number = fake[0].number if fake else None
    if number is None:
        return result
    # An operation in place, or with an output argument, returns that same tensor.
    wrappers = {id(leaf.cpu_tensor): leaf for leaf in fake}

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return wrappers[id(leaf)] if id(leaf) in wrappers else FakeDeviceTensor(leaf, number)

    return tree_map(wrap, result)


def _without_wrapper(leaf: Any) -> Any:
    if isinstance(leaf, FakeDeviceTensor):
        return leaf.cpu_tensor
    return CPU if isinstance(leaf, torch.device) else leaf


def _number(device: torch.device | None) -> int | None:
    """The number of a fake device, by either of its names; None for the CPU."""
    return None if device is None or device.type == "cpu" else device.index or 0
