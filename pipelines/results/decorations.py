"""What is told about a finished result: pictures, pages and calls to the tracking server.

They never cost work: a stage's record is final before the first one, and one that fails is a
warning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.console.log import stage_logger
from pipelines.console.redact import shortened
from pipelines.results.stage_results import StageResult

Decorations = Mapping[str, Callable[[], object]]
"""By the name of what each logs, as in "the metrics could not be logged"."""

R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True, slots=True)
class Decorated(Generic[R]):
    """The result of a stage, and what is logged about it once it is recorded."""

    result: R
    decorations: Decorations


def run_decorations(stage: str, decorations: Decorations) -> None:
    """Run all; the reason of each that fails is logged, its traceback in the log file only."""
    for name, decorate in decorations.items():
        try:
            decorate()
        except Exception as error:
            stage_logger(stage).warning(
                "%s could not be logged (%s); the result is complete without",
                name,
                shortened(error, 200),
                exc_info=True,
            )
