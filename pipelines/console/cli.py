"""One command line for all scripts: options from the settings' fields, errors in one line.

Values come from, weakest first: a field's default, the preset, the file given with ``--config``,
the command line. The last line on standard output is one JSON object with the result.
Exit status: 0 done, 1 failed, 2 wrong settings or input.
"""

import argparse
import contextlib
import difflib
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from alexnet.errors import (
    CorruptDatasetError,
    CorruptShardError,
    DownloadError,
    InvalidModelError,
    MissingDatasetError,
    SourceChangedError,
    UnwritableFolderError,
    UserError,
    one_line,
)
from pipelines.console.log import current_log_file, log_file, show_in_terminal
from pipelines.console.redact import redacted
from pipelines.presets import PRESETS
from pipelines.settings import (
    BatchInferenceSettings,
    FullRunSettings,
    PreprocessCommandSettings,
    S,
    TrainCommandSettings,
    is_switch,
)
from pipelines.workdir import Workdir

KNOWN_KEYS = {
    field.alias or name
    for kind in (
        FullRunSettings,
        PreprocessCommandSettings,
        TrainCommandSettings,
        BatchInferenceSettings,
    )
    for name, field in kind.model_fields.items()
}
"""One file may serve all scripts, so a ``--config`` file may hold any script's settings."""


REMEDIES: Mapping[type[UserError], str] = {
    MissingDatasetError: "run pipelines/preprocess.py first",
    CorruptShardError: "run pipelines/preprocess.py --verify, which writes damaged shards again",
    CorruptDatasetError: "run pipelines/preprocess.py --force to make the data set again",
    SourceChangedError: "run pipelines/preprocess.py --force to make the data set again",
    InvalidModelError: "give another --model, or train again with a lower --learning-rate",
    UnwritableFolderError: "choose another --workdir",
    DownloadError: "unpack imagenette2.tgz yourself and give its folder as --source",
}
"""The remedy for each kind of error of the package ``alexnet``, which names no commands."""

_failures = logging.getLogger("pipelines.failures")
"""Not shown in the terminal as a line of a stage: the last line on standard error tells of it."""


class Summary(Protocol):
    """What a command returns."""

    def to_json(self) -> dict[str, Any]:
        """The last line on standard output."""


class CheckFailedError(Exception):
    """A requested check found a fault; its result is printed all the same."""

    def __init__(self, message: str, result: Summary) -> None:
        super().__init__(message)
        self.result = result


def run_script(kind: type[S], work: Callable[[S], Summary], description: str | None) -> NoReturn:
    """Run a command: read its settings, do the work, print the result, exit."""
    assert description
    show_in_terminal()
    try:
        settings = read_settings(kind, sys.argv[1:], description)
        name = _program().removesuffix(".py").replace(" ", "-")
        with log_file(Workdir(settings.workdir), name), _failures_logged():
            result = work(settings)
    except UserError as error:
        _exit(2, f"{_program()}: {explain(error)}")
    except KeyboardInterrupt:
        _exit(1, f"{_program()}: interrupted; the same command resumes where this one stopped")
    except CheckFailedError as error:
        print(json.dumps(error.result.to_json()))
        _exit(1, f"{_program()}: failed: {error}")
    except OSError as error:  # A full disk, a lost drive: a traceback would not help.
        _exit(1, f"{_program()}: failed: {one_line(error)}")
    except Exception as error:
        print(redacted(traceback.format_exc()), file=sys.stderr, flush=True)
        _exit(1, f"{_program()}: failed: {one_line(error)[:500]}")
    sys.stderr.flush()
    print(json.dumps(result.to_json()), flush=True)
    # Ray's threads may still report a lost node; nothing may follow the last line.
    sys.stdout = sys.stderr
    # Before it ends, Python would search all modules' objects for garbage, for a second or two.
    gc.freeze()
    sys.exit(0)


def explain(error: UserError) -> str:
    """An error's text and what helps against it, on one line."""
    # An error in a Ray actor arrives as a subclass of its class, with a traceback as its text.
    cause = getattr(error, "cause", None)
    original = cause if isinstance(cause, UserError) else error
    remedy = REMEDIES.get(type(original))
    return f"{one_line(original)}; {remedy}" if remedy else one_line(original)


@contextlib.contextmanager
def _failures_logged() -> Iterator[None]:
    """Inside, an error is written to the command's log file, if there is one yet."""
    try:
        yield
    except BaseException as error:
        if current_log_file():
            text = explain(error) if isinstance(error, UserError) else one_line(error)
            _failures.error("%s", text, exc_info=not isinstance(error, UserError))
        raise


def read_settings(kind: type[S], arguments: Sequence[str], description: str) -> S:
    """Settings from the command line, the config file, the preset and the defaults.

    Raises:
        UserError: an option or a key is unknown or its value out of range; the message names it.
    """
    given = vars(_parser(kind, description).parse_args(arguments))
    config = given.pop("config", None)
    from_file = _read_config(config) if config else {}
    fields = {field.alias or name for name, field in kind.model_fields.items()}
    chosen = {key: value for key, value in from_file.items() if key in fields} | given
    preset = chosen.get("preset", "sample")
    named = PRESETS.get(preset, {}) if "preset" in fields else {}
    values = {key: value for key, value in named.items() if key in fields} | chosen
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, config, given)) from error


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


def _parser(kind: type[BaseModel], description: str) -> argparse.ArgumentParser:
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
        if field.annotation is bool and not is_switch(field):
            parser.add_argument(flag, dest=key, action="store_true", help=text)
        elif _is_list(field):
            word = "EPOCH" if key == "lr_drops" else "URI"
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
    return any(get_origin(part) is list for part in get_args(field.annotation))


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    if is_switch(field):
        return " [on]" if field.default else " [off]"
    return "" if field.default is None or field.default is False else f" [{field.default}]"


def _read_config(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: settings are lines of the form 'epochs: 5'")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in values:
        if key not in KNOWN_KEYS:
            near = difflib.get_close_matches(key, KNOWN_KEYS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: {key}: no such setting{hint}")
    return values


def _explain(error: ValidationError, config: str | None, given: Mapping[str, Any]) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    key = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"--{key.replace('_', '-')} is required; see --help"
    where = f"--{key.replace('_', '-')}" if key in given else f"{config or 'preset'}: {key}"
    return f"{where}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _program() -> str:
    return os.path.basename(sys.argv[0])


def _exit(status: int, line: str) -> NoReturn:
    sys.stdout.flush()
    print(redacted(line), file=sys.stderr, flush=True)
    sys.exit(status)
