"""A pickle as plain containers and arrays. Nothing that it names is imported or called.

A pickle is a program that may call any function. Here every name in it stands for one of a few
inert classes of this module, and any other name ends the reading. Arrays of NumPy are rebuilt from
their bytes without NumPy's own functions.
"""

import io
import pickle
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ForbiddenNameError(pickle.UnpicklingError):
    """A pickle names something that no checkpoint needs."""


class PickledType:
    """Of an array's numbers: ``numpy.dtype`` in a pickle."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code, self.big_endian = code, False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.big_endian = state[1] == ">"


class PickledArray:
    """An array, before its bytes are interpreted: ``numpy.ndarray`` in a pickle."""

    def __init__(self, *_: object) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def array(self) -> NDArray[np.float32]:
        """The array as float32.

        Raises:
            ValueError: it is no array of numbers, or its bytes don't fit its shape.
        """
        _, shape, kind, column_major, content = self._state
        if not isinstance(kind, PickledType) or kind.code not in ("f4", "f8"):
            raise ValueError("an array whose numbers are not float32 or float64")
        if isinstance(content, str):  # Of Python 2, whose text is bytes.
            content = content.encode("latin1")
        flat = np.frombuffer(content, (">" if kind.big_endian else "<") + kind.code)
        if any(size < 0 for size in shape) or prod(shape) != len(flat):
            raise ValueError(f"an array of {len(flat)} numbers with the shape {shape}")
        return flat.reshape(shape, order="F" if column_major else "C").astype(np.float32)


class PickledBytes(bytes):
    """Bytes in old pickles of Python 3, which have them as text: ``_codecs.encode``."""

    def __new__(cls, text: str = "", *_: object) -> "PickledBytes":
        """The bytes that the text stands for."""
        return super().__new__(cls, text.encode("latin1"))


class Ignored:
    """Whatever else a checkpoint holds, such as the options of the program."""

    def __init__(self, *_: object) -> None:
        """Take any arguments."""

    def __setstate__(self, state: object) -> None:
        """Take any state."""


_KNOWN: dict[str, type] = {
    f"{package}.{module}.{name}": kind
    for package in ("numpy.core", "numpy._core")
    for module, name, kind in (
        ("multiarray", "_reconstruct", PickledArray),
        ("multiarray", "scalar", Ignored),
        ("numeric", "_frombuffer", Ignored),
    )
} | {
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledType,
    "copy_reg._reconstructor": Ignored,
    "copyreg._reconstructor": Ignored,
    "__builtin__.object": Ignored,
    "builtins.object": Ignored,
    "_codecs.encode": PickledBytes,
}
_OWN_MODULES = ("options", "python_util.options")
"""Modules of cuda-convnet whose objects are in each of its checkpoints."""


# The C implementation reserves memory for the numbers in a pickle before it checks them.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> type:
        """The inert class that stands for a name.

        Raises:
            ForbiddenNameError: there is none.
        """
        if f"{module}.{name}" in _KNOWN:
            return _KNOWN[f"{module}.{name}"]
        if module in _OWN_MODULES:
            return Ignored
        raise ForbiddenNameError(
            f"it names {module}.{name}, which no checkpoint needs; nothing of it was executed"
        )


def load(content: bytes) -> Any:
    """The object in a pickle: dicts, lists, text, numbers and ``PickledArray``.

    Raises:
        ForbiddenNameError: it names anything else.
        pickle.UnpicklingError: it is truncated or no pickle.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # A damaged pickle raises many kinds of errors.
        text = str(error) or type(error).__name__
        raise pickle.UnpicklingError(f"it is truncated or no pickle: {text}") from error
