"""Two evaluated models on the same validation images: is one better, and is that chance.

A model is given by an MLflow URI, an evaluation's key (its folder in the workdir) or a file of
predictions. Shows which images went from right to wrong and from wrong to right, the difference of
the errors with its interval of 95 %, and McNemar's exact test.

    python pipelines/compare.py models:/alexnet/1 models:/alexnet@champion --workdir /data/work
"""

import re
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alexnet import predictions, storage
from alexnet.errors import UserError
from alexnet.plots import evaluation as plots
from alexnet.predictions import Predictions
from alexnet.shards.manifest import Manifest, read_manifest
from alexnet.significance import PairedCounts, p_in_words
from pipelines.configuration.command_settings import CompareSettings
from pipelines.console.cli import run_script
from pipelines.console.log import stage_logger
from pipelines.evaluation import evaluation_report as report
from pipelines.results.command_results import CompareResult
from pipelines.results.records import finished_records
from pipelines.results.stage_results import PreprocessResult
from pipelines.tracking import evaluations, registry
from pipelines.tracking.run import Run, active_run, open_run
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

PANEL_IMAGES = 12
"""Images in the side-by-side figure, as far as possible half of them of each kind."""
LISTED = 10
"""Images of each kind that are listed in the terminal."""


def run(settings: CompareSettings) -> CompareResult:
    """Compare two evaluated models, in an MLflow run."""
    store = connect(settings)
    names = (settings.evaluations[0], settings.evaluations[1])
    first, second = _common(names, _candidates(store, names[0]), _candidates(store, names[1]))
    result = compare(names, first, second)
    for line in in_words(result):
        stage_logger("compare").info("%s", line)
    run_id = open_run(store, "compare", resume=None, parent=None)
    with active_run(store, run_id) as logged:
        logged.log_params(settings.model_dump(exclude={"tracking_uri", "quiet"}))
        logged.set_tags({"stage": "compare", evaluations.VALIDATION_TAG: first.validation})
        logged.log_metrics(result.metrics())
        logged.set_description("\n".join(["```", *in_words(result), "```"]))
        _log_images(Workdir(settings.workdir), logged, result, first, second)
    return result


def compare(names: tuple[str, str], first: Predictions, second: Predictions) -> CompareResult:
    """Compare predictions for the same images."""
    counts = PairedCounts.of(first.correct, second.correct)
    low, high = counts.interval
    return CompareResult(
        first=names[0],
        second=names[1],
        images=counts.images,
        first_error=round(100 * float((~first.correct).mean()), 3),
        second_error=round(100 * float((~second.correct).mean()), 3),
        error_reduction=round(100 * counts.difference, 3),
        error_reduction_low=round(100 * low, 3),
        error_reduction_high=round(100 * high, 3),
        mcnemar_p=counts.p_value,
        both_right=counts.both,
        only_first_right=counts.only_first,
        only_second_right=counts.only_second,
        both_wrong=counts.neither,
        right_to_wrong=_keys(first, first.correct & ~second.correct),
        wrong_to_right=_keys(first, ~first.correct & second.correct),
    )


def _keys(predicted: Predictions, chosen: NDArray[np.bool_]) -> list[str]:
    return [predicted.keys[index] for index in np.flatnonzero(chosen)]


def in_words(result: CompareResult) -> list[str]:
    """The comparison as a table for the terminal."""
    lines = [
        f"A: {result.first}, {result.first_error:.2f} % top-1 error",
        f"B: {result.second}, {result.second_error:.2f} % top-1 error",
        f"{'':14}{'B right':>10}{'B wrong':>10}",
        f"{'A right':14}{result.both_right:>10,}{result.only_first_right:>10,}",
        f"{'A wrong':14}{result.only_second_right:>10,}{result.both_wrong:>10,}",
        f"error of A minus error of B: {result.error_reduction:.2f} percentage points (95 % "
        f"interval {result.error_reduction_low:.2f} to {result.error_reduction_high:.2f}), "
        f"McNemar's exact p {p_in_words(result.mcnemar_p)}, {result.images:,} images",
    ]
    for title, keys in (
        ("right to wrong", result.right_to_wrong),
        ("wrong to right", result.wrong_to_right),
    ):
        if keys:
            more = f" and {len(keys) - LISTED:,} more" if len(keys) > LISTED else ""
            lines.append(f"from {title}: {', '.join(keys[:LISTED])}{more}")
    return lines


def _candidates(store: Store, name: str) -> list[Predictions]:
    """The predictions of one model, the newest first.

    Raises:
        UserError: there is no such model or file, or it was not evaluated.
    """
    if re.fullmatch("[0-9a-f]{16}", name):
        runs = evaluations.find(store, key=name)
        remedy = "give the key of an evaluation of this tracking store"
    elif ":/" in name and not storage.is_remote(name):
        runs = evaluations.find(store, models=registry.get_model_info(store, name).uri)
        remedy = f"run pipelines/evaluate.py --model {name} first"
    elif storage.is_file(path := storage.absolute(name)):
        return [predictions.read(path)]
    else:
        raise UserError(
            f"{name}: no such file, no MLflow URI (such as models:/alexnet@champion) and no key of "
            "an evaluation; give one of them"
        )
    found = [evaluations.read_predictions(store, each.run_id) for each in runs]
    if not any(found):
        raise UserError(f"{name}: has no evaluation with predictions; {remedy}")
    return [each for each in found if each]


def _common(
    names: tuple[str, str], first: Sequence[Predictions], second: Sequence[Predictions]
) -> tuple[Predictions, Predictions]:
    """The newest predictions of both for the same images."""
    for one in first:
        for other in second:
            if (one.validation, one.keys) == (other.validation, other.keys):
                return one, other
    if first[0].wnids != second[0].wnids:
        difference = f"{len(first[0].wnids)} and {len(second[0].wnids)} different classes"
    else:
        difference = "different validation images"
    raise UserError(
        f"{names[0]} and {names[1]} were evaluated on {difference}; run pipelines/evaluate.py with "
        "each --model in one workdir"
    )


def _log_images(
    workdir: Workdir, run: Run, result: CompareResult, first: Predictions, second: Predictions
) -> None:
    """Log the images on which the models differ: all as a table, some as a figure."""
    position = {key: index for index, key in enumerate(first.keys)}
    manifest = _dataset(workdir, first.validation)
    names = [label.name for label in manifest.labels] if manifest else list(first.wnids)
    changed = {"right to wrong": result.right_to_wrong, "wrong to right": result.wrong_to_right}
    rows = [
        {
            "key": key,
            "change": change,
            "class": names[first.labels[position[key]]],
            "A": names[first.best[position[key], 0]],
            "B": names[second.best[position[key], 0]],
        }
        for change, keys in changed.items()
        for key in keys
    ]
    schema = pa.schema([(column, pa.string()) for column in ("key", "change", "class", "A", "B")])
    run.log_table(pa.Table.from_pylist(rows, schema=schema), "changed_images.json")
    if manifest is None:
        stage_logger("compare").info(
            "no figure: the workdir does not contain the validation images of the evaluations"
        )
        return
    half = PANEL_IMAGES // 2
    lost, gained = changed.values()
    shown = lost[: max(half, PANEL_IMAGES - len(gained))]
    shown = shown + gained[: PANEL_IMAGES - len(shown)]
    if not shown:
        return
    at = [position[key] for key in shown]
    panel = plots.comparison_panel(
        report.images_of(manifest, shown),
        [names[first.labels[index]] for index in at],
        [report.ranking(first, names, index) for index in at],
        [report.ranking(second, names, index) for index in at],
        (result.first, result.second),
    )
    run.log_figure(panel, "changed_images.png")


def _dataset(workdir: Workdir, validation: str) -> Manifest | None:
    """The workdir's data set with these validation images."""
    for record in reversed(finished_records(workdir, "preprocess")):
        outcome = record.outcome(PreprocessResult, workdir)
        if outcome is None:
            continue
        try:
            manifest = read_manifest(outcome.result.shards)
        except UserError:  # The data set was deleted.
            continue
        if manifest.content_digest("val") == validation:
            return manifest
    return None


def main() -> NoReturn:
    """The command."""
    run_script(CompareSettings, run, __doc__)


if __name__ == "__main__":
    main()
