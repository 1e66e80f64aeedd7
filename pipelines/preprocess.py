"""Raw images → 256x256 Parquet shards with a manifest, rejects and statistics.

Reads the official ILSVRC2012 archives in place, Kaggle's layout, {train,val}/<class>/ folders or
Hugging Face's Parquet files. Every task of the Ray Data job writes one shard; a run that was
killed resumes with the missing ones. The result is stored in <workdir>/shards/<digest>/.

    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work
    python pipelines/preprocess.py --source /data/ilsvrc2012 --dry-run
    python pipelines/preprocess.py --source /data/ilsvrc2012 --workdir /data/work --verify
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from alexnet import storage
from alexnet.provenance import code_version
from alexnet.sources.read import read_source
from pipelines import cluster
from pipelines.console.cli import Summary, run_script
from pipelines.console.log import stage_logger
from pipelines.preprocessing.dry_run import inspect
from pipelines.preprocessing.source import check_account, check_md5, index_source, source_uri
from pipelines.presets import describe, resolve_preset
from pipelines.results.records import StageKey, StageOutcome, read_record
from pipelines.results.stage_results import PreprocessResult, VerifyResult
from pipelines.settings import PreprocessCommandSettings, PreprocessSettings
from pipelines.stage_keys.stage_code import BOUNDARY, CODE
from pipelines.workdir import Workdir

if TYPE_CHECKING:
    from pipelines.stages import Parent


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
        return inspect(settings, uri, source)
    stage_settings = settings.part(PreprocessSettings)
    outcome = run(stage_settings)
    if not settings.verify:
        return outcome
    # As in ``run``, which has imported this by now.
    from pipelines.preprocessing.dataset import verify_dataset

    return VerifiedOutcome(outcome, verify_dataset(stage_settings, outcome.result.shards))


def run(
    settings: PreprocessSettings, parent: "Parent | None" = None
) -> StageOutcome[PreprocessResult]:
    """Preprocess, unless it has been done."""
    settings = resolve_preset(settings, of_sample=settings.source is None)
    storage.make_folder(settings.workdir)
    uri = source_uri(settings)
    source = index_source(settings, uri)
    log = stage_logger("preprocess")
    check_account(settings, uri, source, lambda line: log.info("%s", line))
    log.info("%s", describe(settings, {"rows_per_shard": settings.rows_per_shard}))
    workdir = Workdir(settings.workdir)
    key = StageKey(
        stage="preprocess",
        settings=settings.results(),
        inputs={
            "source": workdir.relative(uri),
            "files": source.source_fingerprint[:16],
        },
        code=code_version(CODE["preprocess"], boundary=BOUNDARY),
    )
    record = read_record(workdir, key)
    if settings.force or record is None or not record.finished:
        cluster.connect_in_background()
    # This imports MLflow and Ray Data, which take a second, while Ray starts.
    from pipelines.preprocessing.stage import run_indexed

    return run_indexed(settings, uri, source, key, parent)


def main() -> NoReturn:
    """The command."""
    run_script(PreprocessCommandSettings, command, __doc__)


if __name__ == "__main__":
    main()
