"""The Ray actors that hold models, for ``evaluate`` and ``batch_inference``."""
