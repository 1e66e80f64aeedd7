"""The files of an output: schema of the predictions, results of finished parts, text formats.

    <output>/part-000000.parquet ...             one row for each item, in the order of the listing
    <output>/part-000000.csv ...                 the same as text, if wanted; or .jsonl
    <output>/manifest.json                       written last
    <output>/_listing/part-000000.json ...       results: counts and sha256 of the part's files
    <output>/_thumbnails/part-000000.parquet ... for the HTML page, if it is wanted

A part is finished if its result is of the same listing and its files have the sha256 that the
result contains.
"""

import csv
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from alexnet import storage
from alexnet.inference.listing import listing_folder, part_name

TextFormat = Literal["csv", "jsonl"]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("view", pa.string()),
    ]
)
"""``status`` is ``ok`` or ``rejected``; the lists are best first. ``sha256``, ``width`` and
``height`` are those of the original. ``view`` is ``centre``, or ``ten`` for the average of ten."""

FEATURES = pa.field("features", pa.list_(pa.float32()))
"""The last column, if features are wanted; null for rejected files."""

MANIFEST = "manifest.json"
THUMBNAILS = "_thumbnails"

BINS = 20
"""Of the histogram of the best labels' probabilities."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and digest of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """Counts of a part, and its files."""

    number: int
    listing: str
    """Digest of its part of the listing."""
    rows: int
    rejected: int
    reasons: dict[str, int]
    """Rejected items by the category of their reason."""
    labels: dict[str, int]
    """Items by their best label."""
    confidences: list[int]
    """Items by the best label's probability, in ``BINS`` bins."""
    files: dict[str, FileDigest]
    """By path below the output."""


def predictions_name(number: int) -> str:
    """The Parquet file of a part, relative to the output."""
    return f"{part_name(number)}.parquet"


def thumbnails_name(number: int) -> str:
    """The thumbnails of a part, relative to the output."""
    return f"{THUMBNAILS}/{part_name(number)}.parquet"


def text_format_of(name: str) -> TextFormat | None:
    """The format of a file of a part; None if it is Parquet."""
    suffix = name.rpartition(".")[2]
    return next((known for known in get_args(TextFormat) if known == suffix), None)


def wanted_files(number: int, text_format: TextFormat | None, *, thumbnails: bool) -> list[str]:
    """The files that a part consists of, relative to the output."""
    names = [predictions_name(number)]
    names += [f"{part_name(number)}.{text_format}"] if text_format else []
    return names + ([thumbnails_name(number)] if thumbnails else [])


def result_path(output: str, number: int) -> str:
    """The path of a part's result."""
    return storage.join(listing_folder(output), f"{part_name(number)}.json")


def write_result(output: str, result: PartResult) -> None:
    """Write a part's result; its files must be there already."""
    storage.write_json(result_path(output, result.number), asdict(result))


def read_result(output: str, number: int, listing: str) -> PartResult | None:
    """A part's result with those of its files that are unchanged.

    Returns:
        None if the part has to be predicted: it has no result of this listing, or its Parquet file
        is missing or damaged.
    """
    try:
        value = storage.read_json(result_path(output, number))
        files = {name: FileDigest(**digest) for name, digest in value.pop("files").items()}
        result = PartResult(**value, files=files)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if result.listing != listing:
        return None
    unchanged = {name: file for name, file in files.items() if _is_unchanged(output, name, file)}
    if predictions_name(number) not in unchanged:
        return None
    result.files.clear()
    result.files.update(unchanged)
    return result


def _is_unchanged(output: str, name: str, file: FileDigest) -> bool:
    path = storage.join(output, name)
    try:
        return storage.size(path) == file.bytes and storage.sha256(path) == file.sha256
    except FileNotFoundError:
        return False


def write_file(output: str, name: str, data: bytes) -> FileDigest:
    """Write a file of an output, atomically."""
    storage.write_bytes(storage.join(output, name), data)
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def as_text(table: pa.Table, text_format: TextFormat) -> bytes:
    """Predictions as UTF-8 text: CSV in which lists are JSON, or one JSON object per line."""
    buffer = io.StringIO()
    if text_format == "csv":
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(map(_csv_cells, table.to_pylist()))
    else:
        for row in table.to_pylist():
            buffer.write(json.dumps(row, ensure_ascii=False) + "\n")
    return buffer.getvalue().encode()


def _csv_cells(row: dict[str, Any]) -> list[Any]:
    return [
        json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
        for value in row.values()
    ]
