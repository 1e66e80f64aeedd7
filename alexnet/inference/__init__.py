"""Predictions for any files: lists of inputs, reading, parts of the output, the HTML page."""
