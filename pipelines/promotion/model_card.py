"""The model card of a registered version, in Markdown: what it is made of and what to expect."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.results.stage_results import EvaluateResult
from pipelines.tracking.registry import ModelInfo
from pipelines.tracking.run import code_span

_SHOWN = 10
"""Names of classes in the card."""
_NUMBERS = ("epochs", "batch_size", "learning_rate", "precision", "seed")
"""Parameters of the training in the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a card is about."""

    version: str
    """``<registered name>/<version>``."""
    model: ModelInfo
    evaluation_run: str
    params: Mapping[str, str]
    """Of the training's run; empty if it was deleted."""


def model_card(origin: Origin, evaluated: EvaluateResult) -> str:
    """The card of a version.

    Args:
        origin: the version, its model and its runs.
        evaluated: its errors.
    """
    model, params = origin.model, origin.params
    names = [code_span(name) for _, name in model.classes]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    numbers = ", ".join(
        f"{name.replace('_', ' ')} {params[name]}" for name in _NUMBERS if name in params
    )
    rows = {
        "model": f"AlexNet of 2012, 8-bit crops (N, 224, 224, 3) to probabilities, {model.uri}",
        "data": f"{len(names):,} classes: {', '.join(names[:_SHOWN])}{more}; shards "
        f"{code_span(model.shards or 'unknown')}",
        "recipe": ", ".join(filter(None, [params.get("recipe", "unknown"), numbers])),
        "top-1 error": _error(
            evaluated.top1_error, evaluated.top1_error_low, evaluated.top1_error_high
        ),
        "top-5 error": _error(
            evaluated.top5_error, evaluated.top5_error_low, evaluated.top5_error_high
        ),
        "top-1 error, centre view": _error(
            evaluated.centre_top1_error,
            evaluated.centre_top1_error_low,
            evaluated.centre_top1_error_high,
        ),
        "calibration": f"probabilities are wrong by {evaluated.calibration_error:.1f} percentage "
        "points on average",
        "limits": f"measured on {evaluated.images:,} validation images of the same source; any "
        "other image gets one of these classes too, and how often that is right is not known",
        "licence": "Apache 2.0 for the code; the images have licences of their own, which decide "
        "what the weights may be used for",
        "lineage": f"training run {model.run_id}, evaluation run {origin.evaluation_run}; "
        f"{code_span(f'alexnet lineage models:/{origin.version}')} follows it to the original "
        "bytes",
    }
    escaped = {name: text.replace("|", "\\|") for name, text in rows.items() if text}
    lines = [f"| {name} | {text} |" for name, text in escaped.items()]
    return "\n".join([f"| model card | {origin.version} |", "| --- | --- |", *lines])


def _error(error: float | None, low: float | None, high: float | None) -> str:
    """An error with its interval; empty if there is none."""
    if error is None or low is None or high is None:
        return ""
    return f"{error:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"
