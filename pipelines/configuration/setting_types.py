"""How settings are declared, and types of their values: what is accepted and converted to what.

Command lines give text, configuration files also give numbers, lists, and true for ``on``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from alexnet import storage
from alexnet.storage.names import path_bytes


def option(
    default: Any,
    description: str,
    *,
    result: bool = False,
    positional: bool = False,
    **bounds: Any,
) -> Any:
    """A setting with its default and help text.

    ``result``: part of a stage's identity. ``positional``: on the command line without an option's
    name; the value is a list.
    """
    extra: JsonDict = {"result": result, "positional": positional}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def is_positional(field: FieldInfo) -> bool:
    """Whether a setting is given without an option's name."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("positional"))


Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32", "bf16"]
PresetName = Literal["none", "sample", "imagenette", "ilsvrc2012"]


def _absolute(value: Any) -> Any:
    """Before validation, which refuses paths that are not UTF-8."""
    return storage.absolute(value) if isinstance(value, str) and value else value


PathOrUri = Annotated[str, Field(min_length=1), BeforeValidator(_absolute)]
"""A local path, made absolute because Ray's workers run elsewhere, or an s3:// or gs:// URI."""


def _utf8(path: str) -> str:
    if path_bytes(path) != path.encode():
        raise ValueError(
            "MLflow and Ray can't use a workdir whose name is not UTF-8; rename it or choose "
            "another"
        )
    return path


WorkdirPath = Annotated[PathOrUri, AfterValidator(_utf8)]
"""As ``PathOrUri``, in UTF-8."""


@dataclass(frozen=True, slots=True)
class Origins:
    """Where values of settings were given; settings with the same values are equal all the same."""

    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    """``--epochs`` or the name of a file, by the setting's name."""


def _server_address(uri: str) -> str:
    """Check a server's address; the URI of a file or a database is not changed or checked."""
    if uri.lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(uri)
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError("a server is a host and a port from 1 to 65535: http://host:5000")
    return uri


TrackingUri = Annotated[str, Field(min_length=1), AfterValidator(_server_address)]


def _number(value: Any) -> Any:
    """A number from the command line, where everything is text: no ``Literal`` reads it."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


OneOrTwo = Annotated[Literal[1, 2], BeforeValidator(_number)]
OneOrTen = Annotated[Literal[1, 10], BeforeValidator(_number)]


def _range(value: Any) -> Any:
    """``4`` and ``"4"`` are four at least and at most, ``"1:4"`` is one to four."""
    if isinstance(value, int | str):
        ends = str(value).split(":")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends):
            raise ValueError("a number, or the least and the most, as in 1:4")
        return int(ends[0]), int(ends[-1])
    return value


def _least_first(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("at least 1, and the smaller number first, as in 1:4")
    return value


def _range_text(value: tuple[int, int]) -> int | str:
    return value[0] if value[0] == value[1] else f"{value[0]}:{value[1]}"


Workers = Annotated[
    tuple[int, int],
    BeforeValidator(_range),
    AfterValidator(_least_first),
    PlainSerializer(_range_text),
]
"""The least and the most workers; as text, ``4`` or ``1:4``."""


def on_or_off(value: bool) -> str:
    """A switch as users write it."""
    return "on" if value else "off"


def _switch(value: Any) -> bool:
    """``on`` and ``off`` from the command line; YAML reads the bare words as true and false."""
    if isinstance(value, bool):
        return value
    if value in ("on", "off"):
        return bool(value == "on")
    raise ValueError("on or off")


Switch = Annotated[bool, BeforeValidator(_switch), PlainSerializer(on_or_off)]
"""A setting with the words ``on`` and ``off``, unlike a flag, which has none."""


def option_text(value: object) -> str:
    """The value of an option as text; ``none`` if it has not been given."""
    return "none" if value is None else str(value)


def is_switch(field: FieldInfo) -> bool:
    """Whether a field is a ``Switch``."""
    return field.annotation is bool and bool(field.metadata)


def _no_repetition(epochs: list[int]) -> list[int]:
    if len(set(epochs)) < len(epochs):
        raise ValueError("each epoch once")
    return epochs


Epochs = Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_no_repetition)]


def _as_list(value: Any) -> Any:
    """One text without a list is a list of one."""
    return [value] if isinstance(value, str) else value


ModelUris = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1),
    BeforeValidator(_as_list),
]
"""One model or several; in a file also one without a list."""


def _some_weight(values: list[float]) -> list[float]:
    if not sum(values):
        raise ValueError("at least one above 0")
    return values


Coefficients = Annotated[
    list[Annotated[float, Field(ge=0, le=1e6)]], Field(min_length=1), AfterValidator(_some_weight)
]
"""Weights of an average."""

Inputs = Annotated[list[PathOrUri], Field(min_length=1), BeforeValidator(_as_list)]
"""One path, URI or glob, or several; in a file also one without a list."""


def _registrable(name: str) -> str:
    """MLflow's names have no ``/`` and no ``:``; a search for a name with a quote is refused."""
    if not name or any(character in name for character in "/:'\"`\\"):
        raise ValueError("a name without quotation marks, slashes and colons")
    return name


RegisteredName = Annotated[str, AfterValidator(_registrable)]

StageKeyText = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
"""A stage key: 16 hexadecimal digits."""


def _two(value: list[str]) -> list[str]:
    if len(value) != 2:
        raise ValueError("give exactly two")
    return value


TwoEvaluations = Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_two)]
"""Names of two evaluations."""
