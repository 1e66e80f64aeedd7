"""The workflow: one module for each command. Ray distributes it, MLflow records it."""

import os
import sys

from pipelines.console.excepthook import end_quietly

# Ray reports to nobody unless the user says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Otherwise Ray warns that a later version will hide no GPU from tasks that request none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
sys.excepthook = end_quietly
