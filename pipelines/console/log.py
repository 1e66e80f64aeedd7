"""The lines of a command: short ones in the terminal, and with time and level in a log file.

A stage logs under the name ``alexnet.<stage>``. The terminal shows ``<stage>: <message>``. The file
also has the time, the level, the warnings of libraries and the tracebacks of unexpected errors. It
is stored in the workdir; for a workdir in an object store it is written when the command ends.
"""

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator

from alexnet import storage
from pipelines.console import live_line
from pipelines.console.output import printable
from pipelines.console.redact import redacted
from pipelines.workdir import Workdir

_ROOT = "alexnet"
_PROGRESS = "about_progress"
"""The attribute of records about progress."""
_LIBRARIES = ("ray", "mlflow")
"""Loggers that pass nothing on to the root logger."""


def stage_logger(stage: str) -> logging.Logger:
    """The logger of a stage or a command."""
    return logging.getLogger(f"{_ROOT}.{stage}")


def log_progress(stage: str, line: str) -> None:
    """Log a line about progress, which a terminal with a bar does not print."""
    stage_logger(stage).info("%s", line, extra={_PROGRESS: True})


class _Formatter(logging.Formatter):
    """One line for each message; the lines of a traceback follow it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


_FORMATTER = _Formatter()


class _Terminal(logging.Handler):
    """Prints lines to the present standard output, which tests and ``run_script`` replace.

    The work continues if nobody reads them any more: the log file has them too.
    """

    def emit(self, record: logging.LogRecord) -> None:
        stage = record.name.removeprefix(f"{_ROOT}.")
        if hasattr(record, _PROGRESS) and live_line.replaces_lines(sys.stdout):
            return
        with contextlib.suppress(OSError), live_line.above(sys.stdout):
            line = printable(f"{stage}: {record.getMessage()}")
            print(redacted(line), file=sys.stdout, flush=True)


class _LogFile(logging.Handler):
    """Appends lines to a file, which is created with the first one.

    The file is opened for each line: with a full disk, an open file would raise errors when it is
    flushed and closed. So a line that can't be written is lost, and the work continues.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def format(self, record: logging.LogRecord) -> str:
        # Not ``setFormatter``: when Ray starts, it replaces the formatters of existing handlers.
        return redacted(_FORMATTER.format(record))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")


def show_in_terminal(*, quiet: bool = False) -> None:
    """Show the lines of all stages in the terminal; if ``quiet``, warnings and errors only."""
    logger = logging.getLogger(_ROOT)
    logger.setLevel(logging.INFO)
    handler = next((each for each in logger.handlers if isinstance(each, _Terminal)), _Terminal())
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)  # Without effect for one that is there already.


@contextlib.contextmanager
def log_file(workdir: Workdir, command: str) -> Iterator[None]:
    """Inside, everything that is logged is written to a new file in the workdir too."""
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with contextlib.ExitStack() as stack:
        folder = workdir.logs
        if storage.is_remote(folder):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="alexnet-log-"))
        handler = _LogFile(os.path.join(folder, name))
        loggers = [logging.getLogger(), *map(logging.getLogger, _LIBRARIES)]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            if folder != workdir.logs and os.path.exists(handler.path):
                with contextlib.suppress(OSError), open(handler.path, "rb") as file:
                    storage.write_bytes(storage.join(workdir.logs, name), file.read())


def current_log_file() -> str | None:
    """The local path of the command's log file; None if there is none or it has no lines yet."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile) and os.path.exists(handler.path):
            return handler.path
    return None
