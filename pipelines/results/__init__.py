"""What stages and commands return and record: for the terminal, MLflow, and the next run."""
