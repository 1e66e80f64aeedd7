"""A full run in one table: why each stage ran or was skipped, its figures, where its result is."""

import textwrap
from collections.abc import Iterable
from typing import Any

from pipelines.console.progress import duration
from pipelines.console.table import table
from pipelines.results.records import StageOutcome
from pipelines.results.stage_results import (
    EvaluateResult,
    PreprocessResult,
    PromoteResult,
    StageResult,
    TrainResult,
)

HEADER = ("stage", "time", "why", "result", "location")
MIN_COLUMNS = 48
"""For the cells beside the stage and its time; in less they are below it."""


def summary_lines(outcomes: Iterable[StageOutcome[Any]], columns: int | None) -> list[str]:
    """A row for each stage; a few lines for each if the table has more columns than the terminal.

    Args:
        outcomes: of the stages.
        columns: of the terminal; None if there is none.
    """
    rows = [
        (
            outcome.result.stage,
            "skipped" if outcome.skipped else duration(outcome.seconds),
            outcome.reason,
            figures(outcome.result),
            location(outcome.result),
        )
        for outcome in outcomes
    ]
    lines = table(HEADER, rows)
    if columns is None or max(map(len, lines)) <= columns:
        return lines
    return [line for row in rows for line in _in_lines(row, columns)]


def _in_lines(row: tuple[str, str, str, str, str], columns: int) -> list[str]:
    stage, time, why, result, where = row
    start = f"{stage:<10}  {time:<7}  "
    first = []
    if columns - len(start) < MIN_COLUMNS:
        first, start = [start.rstrip()], "  "
    indent = len(start) * " "
    # A path or a URI is not broken: it is copied.
    return [
        *first,
        *textwrap.wrap(result, columns, initial_indent=start, subsequent_indent=indent),
        *textwrap.wrap(why, columns, initial_indent=indent, subsequent_indent=indent),
        f"{indent}{where}",
    ]


def figures(result: StageResult) -> str:
    """The figures of a stage that matter most, with their units."""
    match result:
        case PreprocessResult():
            rate = result.images_per_second
            return (
                f"{result.images:,} images of {result.classes:,} classes, "
                f"{result.rejected:,} rejected" + (f", {rate:,.0f} images/s" if rate else "")
            )
        case TrainResult():
            return (
                f"{result.epochs} epoch{'' if result.epochs == 1 else 's'}, "
                f"training loss {result.train_loss:.3f}, "
                f"validation error {result.val_top1_error:.1f} % top-1, "
                f"{result.images_per_second:,.0f} images/s"
            )
        case EvaluateResult():
            top5 = f", {result.top5_error:.2f} % top-5" if result.top5_error is not None else ""
            return (
                f"error {result.top1_error:.2f} % top-1 "
                f"({result.top1_error_low:.2f} to {result.top1_error_high:.2f} %){top5}"
            )
        case PromoteResult():
            if result.champion:
                return f"version {result.version} is champion"
            champion = result.champion_version
            others = f"version {champion} stays champion" if champion else "there is no champion"
            return f"version {result.version} is candidate; {others}"
    raise AssertionError(result)


def location(result: StageResult) -> str:
    """The path or the URI of a stage's result."""
    match result:
        case PreprocessResult():
            return result.shards
        case TrainResult() | PromoteResult():
            return result.model
        case EvaluateResult():
            return result.predictions
    raise AssertionError(result)


def as_markdown(outcomes: Iterable[StageOutcome[Any]]) -> str:
    """A table of the stages in Markdown, for the page of the full run."""
    lines = ["| stage | what happened | figures |", "| --- | --- | --- |"]
    for outcome in outcomes:
        happened = "skipped, nothing changed" if outcome.skipped else "ran"
        lines.append(f"| {outcome.result.stage} | {happened} | {figures(outcome.result)} |")
    return "\n".join(lines)
