"""The Ray Data job of ``batch_inference``: one task for each part of the output."""

import time
from collections.abc import Callable, Sequence

import ray
from ray.data import ActorPoolStrategy, DataContext

from alexnet.inference.listing import ListedPart
from alexnet.inference.output import PartResult, read_result
from alexnet.inference.parts import PartOptions
from pipelines import cluster
from pipelines.cluster import KEEP_FREED_MEMORY
from pipelines.clusters.allocation import actor_resources, request_in_words
from pipelines.clusters.task_errors import raise_packed
from pipelines.configuration.command_settings import BatchInferenceSettings
from pipelines.console.progress import Progress
from pipelines.console.stderr_filter import without_actor_pool_note
from pipelines.inference.part_actor import ModelOptions, PartActor

PARTS_AT_ONCE = 2
"""That an actor writes: while one ends, the next one keeps its threads busy."""

BATCH_SIZE_CPU, BATCH_SIZE_GPU = 32, 256


def make_parts(
    settings: BatchInferenceSettings,
    missing: Sequence[ListedPart],
    options: PartOptions,
    models: Callable[[int], ModelOptions],
) -> tuple[list[PartResult], float]:
    """Write some parts.

    Args:
        settings: where to compute.
        missing: the parts.
        options: of the output.
        models: and how they predict, for a batch size.

    Returns:
        Their results, and the duration in seconds.

    Raises:
        UserError: a source or a model can't be read.
        OSError: parts can't be written.
    """
    if not missing:
        return [], 0.0
    cluster.connect()
    resources = actor_resources(settings.num_workers, settings.device)
    batch_size = settings.batch_size or (BATCH_SIZE_GPU if resources.gpus else BATCH_SIZE_CPU)
    DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    by_number = {part.number: part for part in missing}
    job = ray.data.from_items(
        [{"number": number} for number in by_number], override_num_blocks=len(by_number)
    ).map(
        PartActor,
        compute=ActorPoolStrategy(
            size=min(resources.workers, len(missing)),
            max_tasks_in_flight_per_actor=PARTS_AT_ONCE + 1,
            max_concurrent_calls_per_actor=PARTS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        fn_constructor_args=(options, models(batch_size), resources.threads),
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        runtime_env={"env_vars": KEEP_FREED_MEMORY},
    )
    job.set_name("batch_inference")
    results: list[PartResult] = []
    progress = Progress(
        "batch_inference",
        sum(part.rows for part in missing),
        "images",
        waiting_for=lambda: "the first results of " + request_in_words(resources),
    )
    with progress, without_actor_pool_note():
        for row in job.iter_rows():
            raise_packed(row["error"])
            part = by_number[row["number"]]
            result = read_result(options.output, part.number, part.digest)
            assert result, "a part is written before its task ends"
            results.append(result)
            rejected = sum(result.rejected for result in results)
            progress.add(part.rows, f"{rejected} rejected")
    return results, time.monotonic() - started
