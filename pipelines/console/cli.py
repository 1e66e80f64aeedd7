"""One command line for all scripts: options from the settings' fields, errors in one line.

Values come from, weakest first: a field's default, the preset, MLflow's variables, the file given
with ``--config``, the command line. The last line on standard output is one JSON object with the
result.
Exit status: 0 done, 1 failed, 2 wrong settings or input, 130 ended by Ctrl-C, 143 by SIGTERM, 141
if nobody reads standard output any more, as after ``| head``.
"""

import contextlib
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn, Protocol

from pydantic import ValidationError

from alexnet.errors import (
    CorruptDatasetError,
    CorruptShardError,
    DownloadError,
    InputsChangedError,
    InvalidModelError,
    InvalidPredictionsError,
    MissingDatasetError,
    SourceChangedError,
    UnaccountedFilesError,
    UnwritableFolderError,
    UserError,
    one_line,
)
from pipelines.console import interrupt, live_line
from pipelines.console.config_file import read_config_file
from pipelines.console.log import current_log_file, log_file, show_in_terminal
from pipelines.console.options import option_name, option_parser
from pipelines.console.output import OUTPUT_CLOSED, discard_if_closed, printable, take_any_text
from pipelines.console.redact import redacted, redacted_output, remember_secrets, shortened
from pipelines.presets import PRESETS
from pipelines.settings import S, Settings
from pipelines.tracking.environment import VARIABLES, settings_of_environment
from pipelines.workdir import Workdir

REMEDIES: Mapping[type[UserError], str] = {
    MissingDatasetError: "run pipelines/preprocess.py first",
    CorruptShardError: "run pipelines/preprocess.py --verify, which writes damaged shards again",
    CorruptDatasetError: "run pipelines/preprocess.py --force to make the data set again",
    SourceChangedError: "run pipelines/preprocess.py --force to make the data set again",
    InputsChangedError: "restore them, give another --output, or give --force to begin anew",
    UnaccountedFilesError: "or give --allow-leftover to go on without them",
    InvalidModelError: "give another --model, or train again with a lower --learning-rate",
    InvalidPredictionsError: "run pipelines/evaluate.py --force, which predicts all images again",
    UnwritableFolderError: "choose another --workdir",
    DownloadError: "unpack imagenette2.tgz yourself and give its folder as --source",
}
"""The remedy for each kind of error of the package ``alexnet``, which names no commands."""

_failures = logging.getLogger("pipelines.failures")
"""Not shown in the terminal as a line of a stage: the last line on standard error tells of it."""


def show(settings: Settings, lines: Sequence[str]) -> None:
    """Print lines on standard output, unless the settings say ``--quiet``."""
    if not settings.quiet:
        for line in lines:
            print(line)


class Summary(Protocol):
    """What a command returns."""

    def to_json(self) -> dict[str, Any]:
        """The last line on standard output."""


class CheckFailedError(Exception):
    """A requested check found something; its result is printed all the same."""

    def __init__(self, message: str, result: Summary) -> None:
        super().__init__(message)
        self.result = result


def run_script(kind: type[S], work: Callable[[S], Summary], description: str | None) -> NoReturn:
    """Run a command: read its settings, do the work, print the result, exit."""
    assert description
    take_any_text(sys.stdout, sys.stderr)
    show_in_terminal()
    with interrupt.signals_as_exceptions():
        _run(kind, work, description)


def _run(kind: type[S], work: Callable[[S], Summary], description: str) -> NoReturn:
    try:
        with redacted_output():
            settings = read_settings(kind, sys.argv[1:], description)
            show_in_terminal(quiet=settings.quiet)
            name = _program().removesuffix(".py").replace(" ", "-")
            with (
                live_line.enabled(not settings.quiet),
                log_file(Workdir(settings.workdir), name),
                _failures_logged(),
            ):
                result = work(settings)
    except UserError as error:
        _exit(2, f"{_program()}: {explain(error)}")
    except interrupt.Interrupted as error:
        with contextlib.suppress(SystemExit):
            _exit(error.exit_status, f"{_program()}: {interrupt.MESSAGE}")
        interrupt.exit_now(error.exit_status)
    except KeyboardInterrupt:
        _exit(130, f"{_program()}: {interrupt.MESSAGE}")
    except CheckFailedError as error:
        print(json.dumps(error.result.to_json()))
        _exit(1, f"{_program()}: {error}")
    except PermissionError as error:
        place = error.filename or one_line(error)
        remedy = "have the permissions changed, or give other folders"
        _exit(2, f"{_program()}: {place}: permission denied; {remedy}")
    except OSError as error:  # A full disk, a lost drive: a traceback would not help.
        if isinstance(error, BrokenPipeError) and discard_if_closed(sys.stdout):
            sys.exit(OUTPUT_CLOSED)
        _exit(1, f"{_program()}: failed: {one_line(error)}")
    except Exception as error:
        print(redacted(traceback.format_exc()), file=sys.stderr, flush=True)
        _exit(1, f"{_program()}: failed: {shortened(error, 500)}")
    sys.stderr.flush()
    if discard_if_closed(sys.stdout):
        sys.exit(OUTPUT_CLOSED)
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
            expected = isinstance(error, UserError | KeyboardInterrupt)
            _failures.error("%s", text, exc_info=not expected)
        raise


def read_settings(kind: type[S], arguments: Sequence[str], description: str) -> S:
    """Settings from the command line, the config file, the preset and the defaults.

    Raises:
        UserError: an option or a key is unknown or its value out of range; the message names it.
    """
    given = vars(option_parser(kind, description).parse_args(arguments))
    config = given.pop("config", None)
    from_file = read_config_file(config) if config else {}
    fields = {field.alias or name for name, field in kind.model_fields.items()}
    from_file = {key: value for key, value in from_file.items() if key in fields}
    from_environment = {k: v for k, v in settings_of_environment().items() if k in fields}
    chosen = from_environment | from_file | given
    for value in chosen.values():
        remember_secrets(value)
    preset = chosen.get("preset")
    if preset is None and (preset := _default_preset(fields, chosen)):
        chosen["preset"] = preset
    named = {key: value for key, value in _preset_values(preset).items() if key in fields}
    origins = {key: VARIABLES[key] for key in from_environment}
    origins |= {key: os.path.basename(config or "") for key in from_file}
    origins |= {key: option_name(kind, key) for key in given}
    try:
        return kind.model_validate(named | chosen).with_origins(origins)
    except ValidationError as error:
        where = {key: f"preset {preset}: {key}" for key in named}
        where |= origins | {key: f"{config}: {key}" for key in from_file if key not in given}
        where |= {key: option_name(kind, key) for key in fields - where.keys()}
        raise UserError(_explain(error, where)) from error


def _default_preset(fields: Set[str], chosen: Mapping[str, Any]) -> str | None:
    """The preset of the images to preprocess; None if another stage will find its own data set."""
    if "source" not in fields:
        return None
    if chosen.get("source") is not None:
        return "none"
    first = chosen.get("only") or chosen.get("from") or "preprocess"
    return "sample" if first == "preprocess" else None


def _preset_values(preset: object) -> Mapping[str, Any]:
    """The values of a preset, none if there is no such preset: validation reports that."""
    return next((values for name, values in PRESETS.items() if name == preset), {})


def _explain(error: ValidationError, where: Mapping[str, str]) -> str:
    """The first problem.

    Args:
        error: from the validation of settings.
        where: by the setting's name, what set it.
    """
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    key = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{where[key]} is required; see --help"
    message = f"{where.get(key, key)}: {message[0].lower()}{message[1:]}"
    # A URI may contain a secret; the messages about URIs say what is wrong in them.
    return message if "://" in str(problem["input"]) else f"{message}, not {problem['input']!r}"


def _program() -> str:
    return os.path.basename(sys.argv[0])


def _exit(status: int, line: str) -> NoReturn:
    discard_if_closed(sys.stdout)
    sys.stdout.flush()
    print(redacted(printable(line)), file=sys.stderr, flush=True)
    sys.exit(status)
