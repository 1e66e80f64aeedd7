"""Images anywhere → predictions in Parquet, one row for each file, unreadable ones included.

The output is a folder of parts and a manifest, which is written last. If the command is ended, the
same command keeps the finished parts; files that were added to a folder become further parts.

    python pipelines/batch_inference.py --images /data/photos --output /data/predictions
    python pipelines/batch_inference.py --images s3://b/photos more.tar --output out --html
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NoReturn

from alexnet import storage
from alexnet.errors import UserError
from alexnet.inference.inputs import glob_root, list_items
from alexnet.inference.items import Item
from alexnet.inference.listing import ListedPart, update_listing
from alexnet.inference.output import MANIFEST, PartResult, read_result
from alexnet.inference.parts import PartOptions
from alexnet.inference.rows import RowOptions
from alexnet.provenance import code_version
from pipelines import cluster
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.console.cli import run_script
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.redact import shortened
from pipelines.console.watchdog import Watchdog
from pipelines.inference import origin as origins
from pipelines.inference import report
from pipelines.inference.job import make_parts
from pipelines.inference.origin import ModelOrigin, Origin
from pipelines.inference.part_actor import ModelOptions
from pipelines.results.command_results import BatchInferenceResult
from pipelines.results.decorations import run_decorations
from pipelines.stage_keys.stage_code import BOUNDARY, CODE
from pipelines.tracking import registry
from pipelines.tracking.registry import ModelInfo
from pipelines.tracking.run import active_run, open_run
from pipelines.tracking.store import Store, connect
from pipelines.workdir import Workdir

_CHECKING_THREADS = 8
"""Finished parts that are hashed at the same time."""


def run(settings: BatchInferenceSettings) -> BatchInferenceResult:
    """Predict every file of the inputs that is not predicted yet."""
    started = time.monotonic()
    origins.check_output(settings)
    found = all(storage.exists(path) or glob_root(path) for path in settings.images)
    if found and not storage.is_file(storage.join(settings.output, MANIFEST)):
        cluster.connect_in_background()
    store = connect(settings)
    models = [registry.get_model_info(store, uri) for uri in settings.model]
    _check_models(settings, models)
    lock = f"predictions-{hashlib.sha256(settings.output.encode()).hexdigest()[:16]}"
    with exclusive_lock(Workdir(settings.workdir), lock, "batch_inference"):
        origin = origins.begin(
            settings.output, _origin(settings, store, models), force=settings.force
        )
        return _complete(settings, store, models, origin, started)


def _complete(
    settings: BatchInferenceSettings,
    store: Store,
    models: Sequence[ModelInfo],
    origin: Origin,
    started: float,
) -> BatchInferenceResult:
    """Make the parts that are missing, then the manifest."""
    log = stage_logger("batch_inference")
    output = settings.output
    listed, ignored = _list(settings)
    options = _part_options(settings, models, origin)
    kept = _finished(listed, options)
    missing = [part for part in listed if part.number not in kept]
    run_id = open_run(store, "batch_inference", resume=origins.unfinished_run(output), parent=None)
    origins.set_run(output, run_id)
    with active_run(store, run_id) as run:
        run.log_params(settings.model_dump(exclude={"tracking_uri", "quiet"}))
        run.set_tags(
            {
                "stage": "batch_inference",
                "models": " ".join(model.uri for model in models),
                "predictions": output,
            }
        )
        if kept:
            log.info("%d of %d parts exist from an earlier run", len(kept), len(listed))
        if missing and storage.is_file(storage.join(output, MANIFEST)):
            storage.delete_file(storage.join(output, MANIFEST))
        made, seconds = make_parts(
            settings, missing, options, partial(_model_options, settings, store, models)
        )
        by_number = kept | {part.number: part for part in made}
        results = [by_number[part.number] for part in listed]
        totals = report.add_up(results)
        report.write_manifest(output, origin, results, totals)
        names = [name for _, name in models[0].classes]
        page = _write_page(output, results, origin) if settings.html else None
        predicted = sum(part.rows for part in made)
        result = BatchInferenceResult(
            images=totals.images,
            rejected=totals.rejected,
            files_ignored=ignored,
            seconds=round(time.monotonic() - started, 1),
            images_per_second=round(predicted / seconds, 1) if made else 0.0,
            parts_made=len(made),
            parts_kept=len(kept),
            predictions=output,
            page=page,
            model=" ".join(model.uri for model in models),
        )
        run_decorations(
            "batch_inference",
            {
                "the metrics": lambda: run.log_metrics(result.metrics()),
                **report.decorations(run, output, origin, results, totals, names),
            },
        )
    return result


def _write_page(output: str, results: Sequence[PartResult], origin: Origin) -> str | None:
    """Write the page, and say why if it can't be written: the predictions are complete without."""
    try:
        return report.write_page(output, results, origin)
    except Exception as error:
        stage_logger("batch_inference").warning(
            "the page could not be written (%s); the predictions are complete, and the same "
            "command tries again",
            shortened(error, 200),
            exc_info=True,
        )
        return None


def _check_models(settings: BatchInferenceSettings, models: Sequence[ModelInfo]) -> None:
    classes = models[0].classes
    if settings.features and len(models) > 1:
        raise UserError("--features: give one --model; the units of several have nothing in common")
    for uri, model in zip(settings.model, models, strict=True):
        if model.classes != classes:
            raise UserError(
                f"{uri}: has other classes than {settings.model[0]}; average models of the same "
                "classes"
            )
    if len(classes) < settings.top_k:
        stage_logger("batch_inference").info(
            "the model has %d classes, so there are %d labels for each image, not %d",
            len(classes),
            len(classes),
            settings.top_k,
        )


def _origin(settings: BatchInferenceSettings, store: Store, models: Sequence[ModelInfo]) -> Origin:
    return Origin(
        images=settings.images,
        settings=settings.results(),
        models=[
            ModelOrigin(
                uri=model.uri,
                version=model.version,
                digest=registry.model_digest(store, model.uri),
                shards=model.shards,
            )
            for model in models
        ],
        code=code_version(CODE["batch_inference"], boundary=BOUNDARY),
    )


def _list(settings: BatchInferenceSettings) -> tuple[list[ListedPart], int]:
    """The parts of the listing, with those for new items, and the number of ignored files."""
    log = stage_logger("batch_inference")
    count, ignored = 0, Counter[str]()

    def counted(items: Iterable[Item]) -> Iterator[Item]:
        nonlocal count
        for item in items:
            count += 1
            yield item

    with Watchdog("batch_inference", lambda: f"listing images, {count:,} so far"):
        items = counted(list_items(settings.images, ignored))
        listed, added = update_listing(settings.output, items, settings.rows_per_part, ignored)
    rows = sum(part.rows for part in listed)
    new = sum(part.rows for part in listed[len(listed) - added :])
    rules = ", ".join(f"{rule} {count:,}" for rule, count in sorted(ignored.items()))
    log.info(
        "%s files listed, %s of them new; %s ignored%s",
        f"{rows:,}",
        f"{new:,}",
        f"{ignored.total():,}",
        f" ({rules})" if rules else "",
    )
    return listed, ignored.total()


def _finished(listed: Sequence[ListedPart], options: PartOptions) -> dict[int, PartResult]:
    """The results of parts of which all files exist and are unchanged."""

    def finished(part: ListedPart) -> PartResult | None:
        result = read_result(options.output, part.number, part.digest)
        wanted = options.wanted_files(part.number)
        return result if result and result.files.keys() >= set(wanted) else None

    with (
        Watchdog("batch_inference", lambda: "checking finished parts"),
        ThreadPoolExecutor(_CHECKING_THREADS) as threads,
    ):
        results = threads.map(finished, listed)
        return {result.number: result for result in results if result}


def _part_options(
    settings: BatchInferenceSettings, models: Sequence[ModelInfo], origin: Origin
) -> PartOptions:
    return PartOptions(
        output=settings.output,
        rows=RowOptions(
            names=tuple(name for _, name in models[0].classes),
            top_k=settings.top_k,
            min_probability=settings.min_probability,
            view="ten" if settings.views == 10 else "centre",
        ),
        features=settings.features is not None,
        upright=settings.exif_orientation == "apply",
        text_format=settings.format,
        thumbnails=settings.html,
        metadata=origins.as_metadata(origin),
    )


def _model_options(
    settings: BatchInferenceSettings, store: Store, models: Sequence[ModelInfo], batch_size: int
) -> ModelOptions:
    return ModelOptions(
        store=store,
        uris=tuple(model.uri for model in models),
        views=settings.views,
        layer=settings.features,
        precision=settings.precision,
        batch_size=batch_size,
    )


def main() -> NoReturn:
    """The command."""
    run_script(BatchInferenceSettings, run, __doc__)


if __name__ == "__main__":
    main()
