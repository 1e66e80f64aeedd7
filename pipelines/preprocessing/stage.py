"""The stage ``preprocess``: a data set, its record and its MLflow run.

Importing this module takes a second, most of it for MLflow and Ray Data. ``pipelines.preprocess``
imports it when Ray has begun to start.
"""

from alexnet import storage
from alexnet.sources.read import Source
from pipelines.preprocessing.dataset import create_dataset
from pipelines.preprocessing.report import log_result
from pipelines.preprocessing.shard_plan import dataset_folder
from pipelines.results.datasets import holds_content
from pipelines.results.decorations import Decorated
from pipelines.results.records import StageKey, StageOutcome
from pipelines.results.stage_results import PreprocessResult
from pipelines.settings import PreprocessSettings
from pipelines.stages import Parent, run_stage
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect
from pipelines.workdir import Workdir


def run_indexed(
    settings: PreprocessSettings, uri: str, source: Source, key: StageKey, parent: Parent | None
) -> StageOutcome[PreprocessResult]:
    """Preprocess an indexed source, unless it has been done.

    Args:
        settings: of the stage.
        uri: of the source.
        source: its index.
        key: of the stage.
        parent: the full run, if the stage is part of one.
    """
    folder = dataset_folder(settings, source)

    def work(run: Run) -> Decorated[PreprocessResult]:
        result, manifest = create_dataset(settings, uri, source, key.code)
        return Decorated(result, {"the data set": lambda: log_result(run, uri, manifest, source)})

    return run_stage(
        settings,
        connect(settings),
        key,
        PreprocessResult,
        parent=parent,
        usable=lambda result: holds_content(result.shards, result.content),
        work=work,
        discard=lambda: storage.delete_folder(folder),
        writes=Workdir.shards_lock(folder),
    )
