"""Ctrl-C while a command still imports its libraries, which takes seconds: one word.

Only the standard library is imported here, since this must be in place first.
"""

import os
import sys
from types import TracebackType


def end_quietly(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """A ``sys.excepthook`` that prints no traceback of a ``KeyboardInterrupt``."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)
