"""MLflow: runs, metrics and the model registry. Nothing else imports it or sets its variables."""

import os

# MLflow reports to nobody unless the user says so.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Models are exported graphs and plain tensors; whatever else is in a registry is not unpickled.
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
# With a server it prints two lines at the end of every run, also after the result of the command.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# It draws a bar for each download of more than a few files.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
