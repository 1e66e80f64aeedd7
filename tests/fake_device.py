"""Several devices on a machine that has none: tensors that lie in the CPU's memory and are
computed there, but claim to lie elsewhere.

Numbers, autograd and the optimizer are real. An operation on tensors of different devices raises,
as it does with GPUs, and each device but the first has a random generator of its own.

What autograd is told about their place is ``meta:0``, ``meta:1``: devices without threads and
streams, whose backward pass runs where it was called. (Of a backend made in Python there can be
only one device in torch 2.14: autograd refuses a second.) Python is told ``xla:0``, ``xla:1``:
``torch.autocast`` knows these, and nothing has to be started to use them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
RANDOM = {aten.native_dropout.default, aten.bernoulli_.float, aten.bernoulli.default}


def device(number: int) -> torch.device:
    """The pretended device of a number."""
    return torch.device("xla", number)


class Pretended(Tensor):
    """A tensor that claims to lie on a pretended device; ``content`` is the real one."""

    content: Tensor
    number: int

    @staticmethod
    def __new__(cls, content: Tensor, number: int) -> "Pretended":
        made: Pretended = Tensor._make_wrapper_subclass(
            cls,
            content.shape,
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=torch.device("meta", number),
        )
        made.content, made.number = content, number
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return device(self.number)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.content!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return compute(func, args, kwargs or {})


class Pretending(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, real tensors can be moved to pretended devices, and new ones made there.

    ``performed`` lists all operations that a pretended device took part in.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generators = [torch.Generator() for _ in range(2)]
        self.performed: list[Callable[..., Any]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        numbers = {leaf.number for leaf in tree_leaves(args) if isinstance(leaf, Pretended)}
        if numbers or _number((kwargs or {}).get("device")) is not None:
            self.performed.append(func)
        if func in RANDOM and numbers - {0}:
            with torch.random.fork_rng(devices=[]):
                generator = self.generators[max(numbers)]
                torch.set_rng_state(generator.get_state())
                result = compute(func, args, kwargs or {})
                generator.set_state(torch.get_rng_state())
            return result
        return compute(func, args, kwargs or {})


def compute(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Perform an operation on the CPU and put the result where a real device would leave it."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    held = [leaf for leaf in leaves if isinstance(leaf, Pretended)]
    places = {leaf.number for leaf in held}
    # Numbers may come from the CPU: torch allows tensors without dimensions beside others.
    strangers = [leaf for leaf in leaves if not isinstance(leaf, Pretended) and leaf.dim()]
    if func not in COPIES and (len(places) > 1 or (places and strangers)):
        found = {str(leaf.device) for leaf in leaves}
        raise RuntimeError(f"{func}: tensors on more than one device: {', '.join(sorted(found))}")
    result = func(*tree_map(_content, args), **tree_map(_content, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if "device" in kwargs and kwargs["device"] is not None:
        number = _number(kwargs["device"])
    else:
        number = held[0].number if held else None
    if number is None:
        return result
    # An operation that changes its input, or writes where it is told to, returns that again.
    known = {id(leaf.content): leaf for leaf in held}

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Pretended(leaf, number)

    return tree_map(place, result)


def _content(leaf: Any) -> Any:
    if isinstance(leaf, Pretended):
        return leaf.content
    return CPU if isinstance(leaf, torch.device) else leaf


def _number(place: torch.device | None) -> int | None:
    """Number of a pretended device, under either of its names; None for the CPU."""
    return None if place is None or place.type == "cpu" else place.index or 0
