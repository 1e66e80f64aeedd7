"""The listing of an output's inputs: which item belongs to which part; written once, then kept.

    <output>/_listing/part-000000.parquet ...    see ``items.SCHEMA``

Each part of the listing has a fixed number of items, the last one the rest, and is the plan of one
part of the output. Another listing of the same inputs is compared with the stored one: items that
are new become further parts. So a listing that was interrupted is completed with the same bytes,
and files that were added to a folder later are predicted without the others.
"""

import hashlib
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage
from alexnet.errors import InputsChangedError, UserError, one_line
from alexnet.inference.items import SCHEMA, Hashes, Item, ListedItem, from_table, hashes, to_table
from alexnet.inference.known import HashSet, positions
from alexnet.sources.account import SAME_FILE

_CHUNK = 4096
"""Items that are compared with the stored listing at once."""


class ListedPart(NamedTuple):
    """One part of a listing."""

    number: int
    rows: int
    digest: str
    """sha256 of its file."""


def listing_folder(output: str) -> str:
    """The folder of an output's listing."""
    return storage.join(output, "_listing")


def is_listed(output: str) -> bool:
    """Whether an output has a listing, or the begin of one."""
    return storage.is_file(_path(output, 0))


def part_name(number: int) -> str:
    """``part-000123``; of a part of the listing and of the output."""
    return f"part-{number:06d}"


def read_items(output: str, number: int) -> tuple[list[ListedItem], str]:
    """The items of one part, and the digest of this part of the listing.

    Raises:
        UserError: the part is missing or damaged.
    """
    table, digest = _read(output, number)
    return from_table(table), digest


def update_listing(
    output: str,
    items: Iterable[Item],
    rows_per_part: int,
    ignored: Counter[str] | None = None,
) -> tuple[list[ListedPart], int]:
    """Compare inputs with the stored listing, if there is one, and add parts for new items.

    An item that occurs twice, such as a file that two links lead to, is listed once.

    Args:
        output: the folder.
        items: of the inputs.
        rows_per_part: rows of each part but the last.
        ignored: the number of further occurrences is added as ``SAME_FILE``.

    Returns:
        All parts, and the number of those that are new.

    Raises:
        InputsChangedError: listed items are missing or have changed; the stored listing is as it
            was.
        UserError: an input or the stored listing can't be read.
    """
    stored, known = _load(output)
    comparison = _Comparison(known)
    added: list[ListedPart] = []
    try:
        new = comparison.new_items(items)
        while chunk := list(itertools.islice(new, rows_per_part)):
            added.append(_write(output, len(stored) + len(added), chunk))
        if problem := comparison.difference(output, stored):
            raise InputsChangedError(problem)
        if ignored is not None and comparison.repeated:
            ignored[SAME_FILE] += comparison.repeated
    except UserError:
        for part in reversed(added):
            storage.delete_file(_path(output, part.number))
        raise
    return [*stored, *added], len(added)


class _Comparison:
    """Current items against stored hashes."""

    def __init__(self, stored: Hashes) -> None:
        self._keys, self._versions = stored
        self._keys.sort()
        self._versions.sort()
        self._unseen = np.ones(len(self._versions), bool)
        self._new = HashSet()
        self._changed = 0
        self._first_changed = ""
        self.repeated = 0
        """Items that occurred before, so far."""

    def new_items(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items that are not stored, each once."""
        items = iter(items)
        while chunk := list(itertools.islice(items, _CHUNK)):
            keys, versions = hashes(chunk)
            same = positions(self._versions, versions)
            is_stored = same >= 0
            seen_before = np.zeros(len(chunk), bool)
            seen_before[is_stored] = ~self._unseen[same[is_stored]]
            self._unseen[same[is_stored]] = False
            changed = ~is_stored & (positions(self._keys, keys) >= 0)
            if changed.any():
                self._changed += int(changed.sum())
                self._first_changed = self._first_changed or chunk[int(changed.argmax())].path
            first = np.zeros(len(chunk), bool)
            first[np.unique(keys, return_index=True)[1]] = True
            seen_before |= ~first | self._new.contains(keys)
            self.repeated += int((seen_before & ~changed).sum())
            new = ~seen_before & ~is_stored & ~changed
            self._new.add(keys[new])
            yield from itertools.compress(chunk, new)

    def difference(self, output: str, stored: list[ListedPart]) -> str:
        """A message about stored items that are missing or have changed; empty if none are."""
        unseen = int(self._unseen.sum())
        # A stored item that has changed is not seen in its stored version either.
        missing = unseen - self._changed
        if not unseen:
            return ""
        named = self._first_changed or self._first_unseen(output, stored)
        counts = [
            f"{count:,} {word}"
            for count, word in ((self._changed, "changed"), (missing, "missing"))
            if count > 0
        ]
        return (
            f"{output}: of the {len(self._versions):,} files that were listed, "
            f"{' and '.join(counts)} now, such as {named}"
        )

    def _first_unseen(self, output: str, stored: list[ListedPart]) -> str:
        unseen = self._versions[self._unseen]
        for part in stored:
            table, _ = _read(output, part.number)
            # The other method of NumPy 2.0 fails with numbers of 2^63 and more.
            found = np.isin(table["version"].to_numpy(), unseen, kind="sort")
            if found.any():
                return str(table["path"][int(found.argmax())].as_py())
        raise AssertionError("an unseen version is not in the listing")


def _path(output: str, number: int) -> str:
    return storage.join(listing_folder(output), f"{part_name(number)}.parquet")


def _write(output: str, number: int, items: list[Item]) -> ListedPart:
    buffer = pa.BufferOutputStream()
    pq.write_table(to_table(items), buffer)
    data = buffer.getvalue().to_pybytes()
    storage.write_bytes(_path(output, number), data)
    return ListedPart(number, len(items), hashlib.sha256(data).hexdigest())


def _read(output: str, number: int) -> tuple[pa.Table, str]:
    path = _path(output, number)
    try:
        data = storage.read_bytes(path)
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        if not table.schema.equals(SCHEMA):
            raise ValueError("other columns")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: the listing can't be read ({one_line(error)}); give another output"
        ) from error
    return table, hashlib.sha256(data).hexdigest()


def _load(output: str) -> tuple[list[ListedPart], Hashes]:
    """The stored listing's parts, and the hashes of its items in no particular order."""
    folder = listing_folder(output)
    names = {file.path.rpartition("/")[2] for file in storage.list_files(folder, recursive=False)}
    parts: list[ListedPart] = []
    # Arrays that grow in place: lists of NumPy's would be copied when they are joined.
    keys, versions = array("Q"), array("Q")
    while f"{part_name(len(parts))}.parquet" in names:
        table, digest = _read(output, len(parts))
        parts.append(ListedPart(len(parts), len(table), digest))
        keys.frombytes(table["key"].to_numpy().tobytes())
        versions.frombytes(table["version"].to_numpy().tobytes())
    return parts, Hashes(np.frombuffer(keys, np.uint64), np.frombuffer(versions, np.uint64))
