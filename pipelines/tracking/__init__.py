"""MLflow: runs, metrics and the model registry; nothing else imports it."""
