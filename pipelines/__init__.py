"""The workflow: one module for each command. Ray distributes it, MLflow records it."""

import os
import sys

from pipelines.console.excepthook import end_quietly

# Ray reports to nobody unless the user says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Otherwise Ray warns that a later version will hide no GPU from tasks that request none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Bars of libraries, such as of MLflow's downloads: each command shows its own.
os.environ.setdefault("TQDM_DISABLE", "1")
sys.excepthook = end_quietly
