"""A cache of the index of large archives, so that a repeated run does not list them again.

The cache is one file in its own folder, ``index-<sha256 of its bytes>.parquet``. It is used only
if its bytes still have that digest, and if the present code wrote it from archives with the same
paths, sizes and times of modification.
"""

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.provenance import code_version
from alexnet.sources.account import Account
from alexnet.sources.labels import Label
from alexnet.storage import File

# Entry modules of the code that computes an index; after a change in it the cache is not used.
_CODE = ("alexnet.sources.read",)

_ORIGIN, _CONTENT = b"origin", b"content"
"""Keys in the table's metadata: what the index depends on, and the labels and fingerprint."""


class Indexed(NamedTuple):
    """Index and labels of some archives; ``read.Source`` describes the fields.

    The account leaves out what is beside the archives, which can change while they do not.
    """

    index: pa.Table
    labels: tuple[Label, ...]
    source_fingerprint: str
    account: Account


def load(folder: str, archives: Sequence[File]) -> Indexed | None:
    """The cached index of these archives; None if it is missing, out of date or damaged."""
    for path in _cached_files(folder):
        try:
            data = storage.read_bytes(path)
        except OSError:  # Another run has just replaced it by a newer one.
            continue
        if posixpath.basename(path) != _name(data):
            continue
        table = pq.read_table(pa.BufferReader(data))
        metadata = table.schema.metadata
        if metadata[_ORIGIN] == _origin(archives):
            content = json.loads(metadata[_CONTENT])
            labels = tuple(Label(*label) for label in content["labels"])
            account = Account(**content["account"])
            account.ignored = Counter(account.ignored)
            index = table.replace_schema_metadata(None)
            return Indexed(index, labels, content["fingerprint"], account)
    return None


def save(folder: str, archives: Sequence[File], indexed: Indexed) -> None:
    """Write the index of some archives and delete older ones.

    Raises:
        OSError: the folder can't be written.
    """
    content = json.dumps(
        {
            "labels": indexed.labels,
            "fingerprint": indexed.source_fingerprint,
            "account": {f.name: getattr(indexed.account, f.name) for f in fields(Account)},
        }
    )
    metadata = {_ORIGIN: _origin(archives), _CONTENT: content}
    buffer = pa.BufferOutputStream()
    pq.write_table(indexed.index.replace_schema_metadata(metadata), buffer)
    data = buffer.getvalue().to_pybytes()
    path = storage.join(folder, _name(data))
    storage.write_bytes(path, data)
    for older in _cached_files(folder):
        if older != path:
            storage.delete_file(older)


def _cached_files(folder: str) -> list[str]:
    files = storage.list_files(folder, recursive=False)
    return [file.path for file in files if re.search(r"/index-[0-9a-f]{64}\.parquet$", file.path)]


def _name(data: bytes) -> str:
    return f"index-{hashlib.sha256(data).hexdigest()}.parquet"


def _origin(archives: Sequence[File]) -> bytes:
    """What an index depends on: the code and the archives."""
    return json.dumps([code_version(_CODE), archives]).encode()
