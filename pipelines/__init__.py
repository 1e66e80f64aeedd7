"""The workflow: one module for each command. Ray distributes it, MLflow records it."""

import os
import sys
from types import TracebackType

# Ray reports to nobody unless the user says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Otherwise Ray warns that a later version will hide no GPU from tasks that request none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _without_traceback(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Ctrl-C while a command still imports its libraries, which takes seconds, is one word."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _without_traceback
