"""Which code decides each stage's result: the entry modules of a stage's code version.

This is a module of its own so that ``status`` can compute the versions without importing the
stages, whose libraries take seconds.
"""

from collections.abc import Mapping
from types import MappingProxyType

CODE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "preprocess": (
            "alexnet.sources.read",
            "alexnet.shards.finalize",
            "pipelines.preprocessing.worker",
        ),
        "train": (
            "pipelines.training.worker",
            "pipelines.training.recipe",
            "alexnet.model.classifier",
        ),
        "evaluate": (
            "pipelines.inference.actors",
            "pipelines.evaluation.evaluation_report",
            "alexnet.predictions",
        ),
        "batch_inference": ("pipelines.inference.part_actor",),
    }
)
"""Entry modules of the code that decides what the shards, the trained model, the errors and the
predictions are."""

BOUNDARY = (
    "alexnet.diagnostics",
    "alexnet.plots",
    "pipelines.cluster",
    "pipelines.console",
    "pipelines.evaluation.neighbours",
    "pipelines.settings",
    "pipelines.tracking",
    "pipelines.training.pictures",
)
"""Code that changes no result: a stage's code version leaves it out. What the settings decide is
in the stage's key by value."""

RULES_VERSION = "2"
"""The code version of ``promote``: raised by hand when the rule that picks the champion changes."""
