"""The workflow: a file for each stage that a person can run. Ray distributes, MLflow remembers."""

import os

# Nothing is reported to anybody unless the user says so.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Models are exported graphs and plain tensors; whatever else lies in a registry is not unpickled.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
# An internal note of Ray Data's actor pools, which restart without harm, is logged as an error.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray otherwise warns that a later version will hide no GPU from tasks that ask for none.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
