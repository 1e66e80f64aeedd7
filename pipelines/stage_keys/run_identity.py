"""What tells runs apart: names of stage, recipe, data and date; tags of data and code."""

import posixpath
import time
from collections.abc import Mapping

from pipelines.settings import PreprocessSettings, StageSettings, TrainSettings
from pipelines.stage_keys.checkout import commit

INPUT_TAG = "input."
"""Prefix of the tags with the digests of what a stage reads."""
CODE_TAGS = ("code.version", "git.commit", "git.dirty")

DIGITS = 8
"""Of a digest, where the data have no other name."""
_DIGESTS = ("shards", "validation", "evaluation")
"""Inputs of stages that are digests, in the order in which they name the data."""


def run_name(stage: str, settings: StageSettings, inputs: Mapping[str, str]) -> str:
    """``train source145 sample 2012-12-03 10:15``, with the present date and time.

    Args:
        stage: of the run.
        settings: of the stage, with their preset.
        inputs: of the stage's key.
    """
    words = [stage, recipe_of(settings), data_of(settings, inputs), time.strftime("%Y-%m-%d %H:%M")]
    return " ".join(word for word in words if word)


def recipe_of(settings: StageSettings) -> str:
    """The recipe that the settings name; empty if they have none."""
    return settings.recipe if isinstance(settings, TrainSettings) else ""


def data_of(settings: StageSettings, inputs: Mapping[str, str]) -> str:
    """The preset, the source's folder, or the first digits of the data's digest."""
    if settings.preset not in (None, "none"):
        return str(settings.preset)
    if isinstance(settings, PreprocessSettings) and settings.source:
        return posixpath.basename(settings.source)
    return next((inputs[name][:DIGITS] for name in _DIGESTS if name in inputs), "")


def identity_tags(inputs: Mapping[str, str], code: str, recipe: str) -> dict[str, str]:
    """Tags that tell what a stage has read, with which recipe, and which code has run.

    Args:
        inputs: of the stage's key.
        code: version of the code, from the stage's key; empty for a run of all stages.
        recipe: empty if the stage has none.
    """
    tags = {INPUT_TAG + name: value for name, value in inputs.items()}
    tags |= {n: v for n, v in {"code.version": code, "recipe": recipe}.items() if v}
    if found := commit():
        tags |= {"git.commit": found.id, "git.dirty": "yes" if found.dirty else "no"}
    return tags
