"""Raw images → 256x256 Parquet shards with a manifest, rejects and statistics.

Reads the official ILSVRC2012 archives in place, Kaggle's layout, {train,val}/<class>/ folders or
Hugging Face's Parquet files. Every task of the Ray Data job writes one shard; a run that was
killed resumes with the missing ones. The result is stored in <workdir>/shards/<digest>/.

    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work
    python pipelines/preprocess.py --source /data/ilsvrc2012 --dry-run
    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work --verify
"""

from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from alexnet import storage
from alexnet.provenance import code_version
from alexnet.sources.read import read_source
from pipelines.console.cli import Summary, run_script
from pipelines.console.log import stage_logger
from pipelines.preprocessing.dataset import (
    create_dataset,
    dataset_folder,
    encoding_of,
    verify_dataset,
)
from pipelines.preprocessing.dry_run import inspect
from pipelines.preprocessing.job import start_ray_early
from pipelines.preprocessing.report import log_result
from pipelines.preprocessing.source import check_account, check_md5, index_source, source_uri
from pipelines.presets import describe, resolve_preset
from pipelines.results.datasets import holds_content
from pipelines.results.decorations import Decorated
from pipelines.results.records import StageKey, StageOutcome, finished_records
from pipelines.results.stage_results import PreprocessResult, VerifyResult
from pipelines.settings import PreprocessCommandSettings, PreprocessSettings
from pipelines.stage_keys.stage_code import BOUNDARY, CODE
from pipelines.stages import Parent, run_stage
from pipelines.tracking.run import Run
from pipelines.tracking.store import connect
from pipelines.workdir import Workdir


@dataclass(frozen=True, slots=True)
class VerifiedOutcome:
    """A data set, and what was found when its shards were verified."""

    outcome: StageOutcome[PreprocessResult]
    verified: VerifyResult

    def to_json(self) -> dict[str, Any]:
        """The stage's JSON line with the counts of verified shards."""
        return self.outcome.to_json() | asdict(self.verified)


def command(settings: PreprocessCommandSettings) -> Summary:
    """What the options request: a dry run, or a data set that may be verified then."""
    settings = resolve_preset(settings, of_sample=settings.source is None)
    if settings.check_md5:
        check_md5(source_uri(settings))
    if settings.dry_run:
        uri = source_uri(settings)
        source = read_source(uri, outside=settings.workdir)
        return inspect(settings, uri, source, encoding_of(settings))
    stage_settings = settings.part(PreprocessSettings)
    outcome = run(stage_settings)
    if not settings.verify:
        return outcome
    return VerifiedOutcome(outcome, verify_dataset(stage_settings, outcome.result.shards))


def run(
    settings: PreprocessSettings, parent: Parent | None = None
) -> StageOutcome[PreprocessResult]:
    """Preprocess, unless it has been done."""
    settings = resolve_preset(settings, of_sample=settings.source is None)
    storage.make_folder(settings.workdir)
    uri = source_uri(settings)
    source = index_source(settings, uri)
    log = stage_logger("preprocess")
    check_account(settings, uri, source, lambda line: log.info("%s", line))
    log.info("%s", describe(settings, {"rows_per_shard": settings.rows_per_shard}))
    if not finished_records(Workdir(settings.workdir), "preprocess"):
        start_ray_early()
    key = StageKey(
        stage="preprocess",
        settings=settings.results(),
        inputs={
            "source": Workdir(settings.workdir).relative(uri),
            "files": source.source_fingerprint[:16],
        },
        code=code_version(CODE["preprocess"], boundary=BOUNDARY),
    )

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


def main() -> NoReturn:
    """The command."""
    run_script(PreprocessCommandSettings, command, __doc__)


if __name__ == "__main__":
    main()
