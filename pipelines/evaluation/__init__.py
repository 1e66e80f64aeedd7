"""Predictions of a validation set → errors, tables, figures: for ``evaluate``, ``compare``."""
