"""The index of large archives, kept so that a run with nothing to do need not list them again.

There is one file in a folder of its own, ``index-<sha256 of its bytes>.parquet``. It is used only
if its bytes still have that digest, and if it was made by the code of today from archives of the
same places, sizes and times of change.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.provenance import code_version
from alexnet.sources.labels import Label
from alexnet.storage import File

# What decides how an index comes out; a change in any of it makes the kept one useless.
_CODE = ("alexnet.sources.read",)

_ORIGIN, _CONTENT = b"origin", b"content"
"""Keys in the table's metadata: what it was made from, and what belongs to it."""


class Indexed(NamedTuple):
    """What was found in some archives; for its fields see ``sources.Source``."""

    index: pa.Table
    labels: tuple[Label, ...]
    fingerprint: str


def load(folder: str, archives: Sequence[File]) -> Indexed | None:
    """What was kept of these archives; None if it is not there, out of date or damaged."""
    for path in _kept(folder):
        try:
            data = storage.read_bytes(path)
        except OSError:  # Another run has just put a newer one in its place.
            continue
        if posixpath.basename(path) != _name(data):
            continue
        table = pq.read_table(pa.BufferReader(data))
        metadata = table.schema.metadata
        if metadata[_ORIGIN] == _origin(archives):
            content = json.loads(metadata[_CONTENT])
            labels = tuple(Label(*label) for label in content["labels"])
            return Indexed(table.replace_schema_metadata(None), labels, content["fingerprint"])
    return None


def save(folder: str, archives: Sequence[File], indexed: Indexed) -> None:
    """Keep what was found in some archives, and nothing else.

    Raises:
        OSError: the folder can't be written.
    """
    content = json.dumps({"labels": indexed.labels, "fingerprint": indexed.fingerprint})
    metadata = {_ORIGIN: _origin(archives), _CONTENT: content}
    buffer = pa.BufferOutputStream()
    pq.write_table(indexed.index.replace_schema_metadata(metadata), buffer)
    data = buffer.getvalue().to_pybytes()
    path = storage.join(folder, _name(data))
    storage.write_bytes(path, data)
    for older in _kept(folder):
        if older != path:
            storage.delete_file(older)


def _kept(folder: str) -> list[str]:
    files = storage.list_files(folder, recursive=False)
    return [file.path for file in files if re.search(r"/index-[0-9a-f]{64}\.parquet$", file.path)]


def _name(data: bytes) -> str:
    return f"index-{hashlib.sha256(data).hexdigest()}.parquet"


def _origin(archives: Sequence[File]) -> bytes:
    """What an index depends on."""
    return json.dumps([code_version(_CODE), archives]).encode()
