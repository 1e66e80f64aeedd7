"""Options of the command line from the fields of settings: names, help texts, metavars."""

import argparse
import difflib
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alexnet.errors import UserError
from pipelines.configuration.setting_types import is_positional, is_switch

_LIST_WORDS = {
    "lr_drops": "EPOCH",
    "model": "URI",
    "images": "PATH",
    "coefficients": "WEIGHT",
}
"""What the values of settings that are lists are called in help texts."""


def option_name(kind: type[BaseModel], key: str) -> str:
    """A setting as it is named on the command line."""
    field = kind.model_fields.get(key)
    return key.upper()[:-1] if field and is_positional(field) else "--" + key.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            options = [flag for flag in self._option_string_actions if flag.startswith("--")]
            near = difflib.get_close_matches(word, options, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            message = f"{word}: no such option; {hint}"
        raise UserError(message)


def option_parser(kind: type[BaseModel], description: str) -> argparse.ArgumentParser:
    """A parser with an option for each field; it raises ``UserError``."""
    parser = _Parser(
        description=description.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="read settings from a YAML file")
    for name, field in kind.model_fields.items():
        key = field.alias or name
        flag = "--" + key.replace("_", "-")
        text = (field.description or "") + _default_text(field)
        if is_positional(field):
            parser.add_argument(key, nargs="*", metavar=key.upper()[:-1], help=text)
        elif field.annotation is bool and not is_switch(field):
            parser.add_argument(flag, dest=key, action="store_true", help=text)
        elif _is_list(field):
            word = _LIST_WORDS[key]
            parser.add_argument(flag, dest=key, nargs="+", metavar=word, help=text)
        else:
            parser.add_argument(flag, dest=key, metavar=_metavar(key, field), help=text)
    return parser


def _metavar(key: str, field: FieldInfo) -> str:
    if is_switch(field):
        return "{on,off}"
    choices = _choices(field.annotation)
    return "{" + ",".join(map(str, choices)) + "}" if choices else key.upper().split("_")[-1]


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((choices for part in get_args(annotation) if (choices := _choices(part))), ())


def _is_list(field: FieldInfo) -> bool:
    """Whether a field is a list or None, whatever else its type says about them."""
    return _contains_list(field.annotation)


def _contains_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_contains_list, get_args(annotation)))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    if is_switch(field):
        return " [on]" if field.default else " [off]"
    default = " ".join(field.default) if _is_list(field) and field.default else field.default
    return "" if default is None or default is False else f" [{default}]"
