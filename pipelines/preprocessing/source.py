"""The source of ``preprocess``: where it is, what it holds, and whether it was downloaded whole."""

import posixpath
from collections.abc import Callable
from fractions import Fraction

from alexnet import storage
from alexnet.errors import UserError
from alexnet.shards.manifest import Manifest
from alexnet.sources import imagenette
from alexnet.sources.account import first_names
from alexnet.sources.md5 import OFFICIAL, verify
from alexnet.sources.read import Source, read_source, without_content
from alexnet.sources.sample import LABELS, write_sample
from pipelines.console.lock import exclusive_lock
from pipelines.console.log import stage_logger
from pipelines.console.progress import Progress
from pipelines.console.watchdog import Watchdog
from pipelines.settings import PreprocessSettings
from pipelines.workdir import Workdir

MB = 10**6


def source_uri(settings: PreprocessSettings) -> str:
    """The given source, or the preset's own, which is written or downloaded if it is missing.

    Without a preset it is the sample.

    Raises:
        UserError: there is no such folder, the preset has no source of its own, or Imagenette's
            folder is incomplete.
    """
    if settings.source:
        if not storage.exists(settings.source):
            raise UserError(f"{settings.source}: no such folder; correct --source")
        if posixpath.basename(settings.source) in imagenette.FOLDERS:
            imagenette.check_complete(settings.source)
        return settings.source
    if settings.preset in (None, "sample"):
        folder = Workdir(settings.workdir).sample
        write_sample(folder)
        return folder
    if settings.preset == "imagenette":
        log = stage_logger("preprocess")
        with (
            exclusive_lock(Workdir(settings.workdir), "imagenette", "preprocess"),
            Watchdog("preprocess", lambda: imagenette.download_state(settings.workdir)),
        ):
            return imagenette.fetch(
                settings.workdir, lambda: log.info("downloading Imagenette (1.6 GB)")
            )
    if settings.preset == "ilsvrc2012":
        raise UserError(
            "--source is required with --preset ilsvrc2012: the folder with the official archives, "
            "which image-net.org gives to registered users"
        )
    raise UserError("--source is required with --preset none: the folder with the images")


def is_sample(manifest: Manifest) -> bool:
    """Whether a data set was made from the embedded sample, in this workdir or before it moved."""
    folder = posixpath.basename(Workdir("").sample)
    return manifest.labels == LABELS and posixpath.basename(manifest.source) == folder


def index_source(settings: PreprocessSettings, uri: str) -> Source:
    """The index of the source; that of large archives is cached in the workdir."""
    with Watchdog("preprocess", lambda: f"reading the list of files of {uri}"):
        return read_source(uri, Workdir(settings.workdir).source_index, settings.workdir)


def check_account(
    settings: PreprocessSettings, uri: str, source: Source, show: Callable[[str], object]
) -> None:
    """Show what becomes of each file of the source, before any work.

    Args:
        settings: of the stage.
        uri: of the source.
        source: its index.
        show: prints or logs a line.

    Raises:
        UnaccountedFilesError: files are left over or missing, and the settings don't allow that.
        UserError: more images have no content than may be rejected.
    """
    for note in source.account.notes:
        show(note)
    empty = without_content(source)
    show(source.account.counts(len(empty)).in_words())
    error = source.account.error(uri)
    if error and not settings.allow_leftover:
        raise error
    if error:
        show(f"--allow-leftover: {error}")
    if too_many(len(empty), len(source.index), settings.max_reject_fraction):
        raise UserError(
            f"{uri}: {len(empty):,} of {len(source.index):,} images are empty files or links to "
            f"nothing ({first_names(empty)}), which is more than --max-reject-fraction "
            f"{settings.max_reject_fraction}; copy or unpack them again, or restore what the links "
            "lead to"
        )


def too_many(rejected: int, images: int, max_fraction: float) -> bool:
    """Whether more images are rejected than a fraction of all.

    The fraction is the decimal number that was given: 0.29 * 100 is less than 29 in binary.
    """
    return rejected > Fraction(str(max_fraction)) * images


def check_md5(uri: str) -> None:
    """Read the official archives completely and compare their md5 sums.

    Raises:
        UserError: a file can't be read or its sum differs.
    """
    for name, md5 in OFFICIAL.items():
        path = storage.join(uri, name)
        total = max(0, storage.size(path)) // MB
        progress = Progress("preprocess", total, "MB", task=f"md5 of {name}")

        def show(done: int, _: int, progress: Progress = progress) -> None:
            progress.advance_to(done // MB)

        with progress:
            verify(path, md5, show)
