"""Lists of paths: text, CSV, TSV, and Parquet files with a column of paths."""

import csv
import io
import os
import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.storage.names import path_bytes, path_text

PATH_COLUMNS = ("path", "file", "filename", "image")
_BATCH_ROWS = 4096


def paths_in_list(path: str) -> Iterator[str] | None:
    """The paths in a list, as they are written there; None if the file is no list.

    Raises:
        UserError: a list has no column of paths, or can't be read.
    """
    match posixpath.splitext(path)[1].lower():
        case ".txt":
            return _lines(path)
        case ".csv":
            return _column(path, ",")
        case ".tsv":
            return _column(path, "\t")
        case ".parquet":
            return _paths_in_parquet(path)
        case _:
            return None


def _lines(path: str) -> Iterator[str]:
    for line in _text(path):
        if name := line.rstrip("\r\n"):
            yield _as_text(name, path)


def _as_text(name: str, list_path: str) -> str:
    """The text of a path, which is in the list either as bytes or as text already."""
    text, as_bytes = path_text(name), os.fsencode(name)
    if text == name:
        return name
    is_utf8 = name.encode("utf-8", "replace") == as_bytes
    folder = os.path.dirname(path_bytes(list_path))
    return name if is_utf8 and not os.path.lexists(os.path.join(folder, as_bytes)) else text


def _text(path: str) -> io.TextIOWrapper:
    """A list; bytes that are not UTF-8 stand for the same bytes in names."""
    return io.TextIOWrapper(
        storage.open_input(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )


def _column(path: str, delimiter: str) -> Iterator[str]:
    rows = csv.DictReader(_text(path), delimiter=delimiter)
    try:
        names = rows.fieldnames or []
        column = next((name for name in PATH_COLUMNS if name in names), None)
        if column is None:
            raise UserError(
                f"{path}: has no column {', '.join(PATH_COLUMNS[:-1])} or "
                f"{PATH_COLUMNS[-1]} in its first line; name the column of paths so"
            )
        for row in rows:
            if row[column]:
                yield _as_text(row[column], path)
    except csv.Error as error:
        raise UserError(
            f"{path}: line {rows.line_num} can't be read ({one_line(error)}); correct it"
        ) from error


def open_parquet(file: pa.NativeFile, path: str) -> pq.ParquetFile:
    """An open file as a Parquet file.

    Raises:
        UserError: it is none.
    """
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def _paths_in_parquet(path: str) -> Iterator[str] | None:
    """The values of a Parquet file's column ``path``; None if it contains images."""
    with storage.open_input(path) as file:
        schema = open_parquet(file, path).schema_arrow
    if "image" in schema.names or "path" not in schema.names:
        return None
    return (text for text in strings_in_parquet(path, "path") if text)


def strings_in_parquet(path: str, column: str) -> Iterator[str | None]:
    """A column of strings, some rows at a time."""
    with storage.open_input(path) as file:
        for batch in open_parquet(file, path).iter_batches(_BATCH_ROWS, columns=[column]):
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = values.field(0)
            yield from values.cast(pa.string()).to_pylist()
