"""The data set of a finished ``preprocess``, for the stages that read it and for ``status``."""

import contextlib
from collections.abc import Iterator

from alexnet.errors import CorruptDatasetError, MissingDatasetError, UserError
from alexnet.shards.finalize import missing_files
from alexnet.shards.manifest import Manifest, read_manifest
from pipelines.console.lock import shared_lock
from pipelines.results.records import StageOutcome, newest
from pipelines.results.stage_results import PreprocessResult
from pipelines.settings import StageName, StageSettings
from pipelines.workdir import Workdir


@contextlib.contextmanager
def locked_dataset(
    settings: StageSettings, stage: StageName, preprocessed: StageOutcome[PreprocessResult] | None
) -> Iterator[Manifest]:
    """The manifest of a data set that no other command changes until the block ends.

    Args:
        settings: of the stage that reads the data set.
        stage: its name.
        preprocessed: the outcome that the data set belongs to, by default the workdir's newest.

    Raises:
        UserError: there is no data set, or other shards have taken its place.
    """
    workdir = Workdir(settings.workdir)
    result = (preprocessed or newest(workdir, PreprocessResult, stage)).result
    with shared_lock(workdir, Workdir.shards_lock(result.shards), stage):
        manifest = read_manifest(result.shards)
        if manifest.content_digest() != result.content:
            raise UserError(
                f"{result.shards}: another command has created these shards again, with other "
                "images; run pipelines/preprocess.py for those that you want"
            )
        yield manifest


def readable_manifest(folder: str) -> Manifest | None:
    """The manifest in a folder, None if there is none that can be read."""
    try:
        return read_manifest(folder)
    except (MissingDatasetError, CorruptDatasetError):
        return None


def holds_content(folder: str, content: str) -> bool:
    """Whether a folder holds a complete data set with this content digest; reads no shard."""
    manifest = readable_manifest(folder)
    return (
        manifest is not None
        and manifest.content_digest() == content
        and not missing_files(manifest)
    )
