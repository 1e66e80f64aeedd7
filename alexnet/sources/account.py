"""What becomes of every file of a source: used, ignored by a named rule, or left over.

A file inside an archive and a row of a Parquet file count as files too, besides the archive and the
Parquet file itself. So the numbers add up to what a walk through the folder and its archives finds.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alexnet import storage
from alexnet.errors import UnaccountedFilesError, UserError
from alexnet.sources.visible import Listing, list_folder

LISTED = 3
"""Names that an error lists of each kind of file."""

DOCUMENT, TEST, ANNOTATIONS = "document", "test split", "annotations"
OTHER_PART = "other part of the data set"
OUTSIDE, SAME_FILE, LEFT_OVER = "working folder", "another name of a used file", "left over"
"""Rules that ignore files, besides those of ``ignored`` and ``visible``."""

LOOSE = "beside the class folders: move each into the folder of its class"
NESTED = (
    "in a folder inside a class that has images itself: move them into the class's own folder, or "
    "the folder out of the class"
)
BESIDE = "not part of the data set: move them out of the folder"
CONFLICT = "links to an image of another class or split: keep one of the two"
PACKED = "archives, which are not read here: unpack them, or move them out of the folder"
DANGLING = (
    "links to nothing: restore what they lead to (after git-annex or DVC: get or pull), or delete "
    "them"
)

_DOCUMENTS = (
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml"),
    *(".html", ".htm", ".pdf", ".log", ".ini", ".cfg", ".py", ".ipynb", ".sh", ".m", ".mat"),
    *(".md5", ".sha1", ".sha256", ".sfv", ".bib", ".docx", ".xlsx"),
)
_DOCUMENT_NAMES = {
    *("readme", "license", "licence", "copying", "authors", "changelog", "makefile", "version"),
    *("md5sums", "sha256sums", "checksums", "dockerfile", "citation.cff"),
    "meta.bin",  # torchvision's copy of the development kit
    "metadata.parquet",  # of an image folder of the Hugging Face Hub
}
_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


@dataclass(frozen=True, slots=True)
class FileCounts:
    """What became of the files of a source; ``found`` is the sum of the others."""

    found: int
    used: int
    """In the shards, or read for labels, or archives and Parquet files that contain images."""
    rejected: int
    """Images that can't be read; each is a row of the rejects."""
    ignored: Mapping[str, int]
    """By rule."""

    def in_words(self) -> str:
        """``12 files: 9 used, 1 rejected, 2 ignored (macOS 2)``."""
        ignored = sum(self.ignored.values())
        rules = ", ".join(f"{rule} {count:,}" for rule, count in sorted(self.ignored.items()))
        return (
            f"{self.found:,} files: {self.used:,} used, {self.rejected:,} rejected, "
            f"{ignored:,} ignored" + (f" ({rules})" if rules else "")
        )


@dataclass(slots=True)
class Account:
    """What becomes of the files of a source, before its images are decoded."""

    images: int = 0
    """Rows of the index."""
    others: int = 0
    """Files with labels, archives and Parquet files."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of files by rule."""
    unused: dict[str, list[str]] = field(default_factory=dict)
    """Paths of files that nothing accounts for, by what and where they are and what to do."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Names of what should be there and is not, by what it is."""
    notes: list[str] = field(default_factory=list)
    """What a user should know about how the source is read."""

    def add_unused(self, why: str, paths: Iterable[str]) -> None:
        """Add files that are left over; ``why`` is one of the constants above."""
        if new := list(paths):
            self.unused.setdefault(why, []).extend(new)

    def add_missing(self, what: str, names: Sequence[str]) -> None:
        """Add things that are not there; ``what`` says in the plural what they are."""
        if names:
            self.missing.setdefault(what, []).extend(names)

    def counts(self, rejected: int = 0) -> FileCounts:
        """The numbers, with leftover files as ignored ones."""
        ignored = dict(self.ignored)
        if left_over := sum(map(len, self.unused.values())):
            ignored[LEFT_OVER] = left_over
        used = self.images + self.others
        ignored = {rule: count for rule, count in ignored.items() if count}
        return FileCounts(used + sum(ignored.values()), used - rejected, rejected, ignored)

    def error(self, root: str) -> UserError | None:
        """The error that names what is left over or missing; None if nothing is.

        Args:
            root: the source, for the message.
        """
        problems = [
            f"{what}: {len(names):,} ({first_names(names)})" for what, names in self.missing.items()
        ]
        for why, paths in self.unused.items():
            names = [path.removeprefix(f"{root}/") for path in paths]
            problems.append(f"left over: {len(names):,} ({first_names(names)}), {why}")
        return UnaccountedFilesError(f"{root}: {'; '.join(problems)}") if problems else None


def first_names(names: Sequence[str]) -> str:
    """The first names of many, on one line."""
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in n) for n in names[:LISTED])
    return f"{shown}, …" if len(names) > LISTED else shown


def is_document(name: str) -> bool:
    """Whether a file beside the images is a text, judged by its name."""
    folded = name.casefold()
    return folded in _DOCUMENT_NAMES or folded.endswith(_DOCUMENTS)


def is_archive(name: str) -> bool:
    """Whether a file is an archive or compressed, judged by its name."""
    return name.casefold().endswith(_ARCHIVES)


def count_beside(
    account: Account,
    folder: str,
    known: Sequence[str],
    *,
    rules: Mapping[str, str] | None = None,
    outside: str | None = None,
) -> list[storage.Entry]:
    """Account for what is in a folder besides what was read.

    Args:
        account: documents and ignored files are added.
        folder: its path.
        known: names of files and folders directly in it that are accounted for.
        rules: for names of other files and folders, the rule by which they are ignored, besides
            that ``test`` is a split without labels.
        outside: a folder that is not part of the source, even if it is inside.

    Returns:
        The other files.
    """
    left: list[storage.Entry] = []
    rules = {"test": TEST} | dict(rules or {})

    def sort_out(listing: Listing, rule: str | None) -> None:
        account.ignored.update(listing.ignored)
        for entry in listing.entries:
            name = entry.file.path.rpartition("/")[2]
            applied = rule or rules.get(entry.file.path[len(folder) + 1 :])
            if outside and entry.file.path.startswith(f"{outside}/"):
                applied = OUTSIDE
            if applied or is_document(name):
                account.ignored[applied or DOCUMENT] += 1
            else:
                left.append(entry)

    level = list_folder(folder, recursive=False)
    level.entries[:] = [e for e in level.entries if e.file.path[len(folder) + 1 :] not in known]
    sort_out(level, None)
    for name in level.folders:
        if name not in known:
            sort_out(list_folder(storage.join(folder, name)), rules.get(name))
    return left


def why_unused(entry: storage.Entry, why: str) -> str:
    """Why a file is left over: ``why``, unless it is an archive or a link to nothing."""
    if entry.kind == "dangling link":
        return DANGLING
    return PACKED if is_archive(entry.file.path) else why
