"""Folders, files, globs, lists, archives, Parquet files and our shards → items, one by one.

==================  ===============================================================================
input               items
==================  ===============================================================================
folder              the files at any depth, sorted, but those of ``sources.ignored``; ``.tar`` and
                    ``.parquet`` files in it are expanded like those that are named
data set            a folder with a manifest of shards: its images, train before val
glob                what matches; a folder that matches is searched; ``**`` is any folders
``.tar``            its members, those of tars inside it too; nothing is unpacked
``.parquet``        the column ``image`` (shards, or as on the Hub), else the paths in ``path``
``.txt``            one path in each line
``.csv``, ``.tsv``  the column ``path``, ``file``, ``filename`` or ``image``
any other file      itself
==================  ===============================================================================

Paths in lists are relative to the list's folder. What is damaged, missing or unreadable inside an
input is an item with a problem; an input that is so itself is an error.
"""

import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from alexnet import storage
from alexnet.errors import CorruptDatasetError, MissingDatasetError, UserError, one_line
from alexnet.inference.items import Item
from alexnet.inference.lists import open_parquet, paths_in_list, strings_in_parquet
from alexnet.inference.walk import UNKNOWN, Found, find_file, walk
from alexnet.shards.format import SPLITS
from alexnet.shards.manifest import manifest_path, read_manifest
from alexnet.sources.tar import NO_TARGET, list_range
from alexnet.storage.names import path_bytes

_GLOB = re.compile(r"[*?\[]")
_BATCH_ROWS = 4096
_LOOK_UP_THREADS = 16
"""Files of a list that are looked up at the same time: an object costs a request."""
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


def list_items(inputs: Sequence[str], ignored: Counter[str] | None = None) -> Iterator[Item]:
    """The items of some inputs, in order; items that two inputs share come twice.

    Args:
        inputs: see above.
        ignored: the number of files that are ignored is added, by rule.

    Raises:
        UserError: an input is missing, damaged or empty, or is a list without paths.
    """
    ignored = Counter() if ignored is None else ignored
    for path in inputs:
        items = _list_input(path, ignored)
        first = next(items, None)
        if first is None:
            raise UserError(f"{path}: contains no files; give another path")
        yield from itertools.chain([first], items)


def _list_input(path: str, ignored: Counter[str]) -> Iterator[Item]:
    if storage.is_folder(path):
        return _from_folder(path, ignored)
    if not storage.is_file(path):
        if root := glob_root(path):
            return _from_glob(path, root, ignored)
        raise UserError(f"{path}: no such file or folder; correct the path")
    found = find_file(path)
    suffix = _suffix(path)
    if (paths := paths_in_list(path)) is not None:
        return _from_paths(path, paths, ignored)
    if suffix in _COMPRESSED:
        raise UserError(f"{path}: is compressed, so nothing in it can be read in place; unpack it")
    expand = _EXPANSIONS.get(suffix)
    return expand(found, ignored) if expand else iter([_whole(found)])


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _whole(found: Found) -> Item:
    return Item(
        found.path, found.path, found.real, found.size, found.modified_ns, problem=found.problem
    )


def _from_folder(root: str, ignored: Counter[str]) -> Iterator[Item]:
    if storage.is_file(manifest_path(root)):
        try:
            manifest = read_manifest(root)
        except (MissingDatasetError, CorruptDatasetError):
            pass  # A file of this name that has nothing to do with shards.
        else:
            for shard in (shard for split in SPLITS for shard in manifest.shards[split]):
                yield from _from_parquet(find_file(storage.join(root, shard.file)), ignored)
            return
    for found in walk(root, ignored):
        yield from _expand(found, ignored)


def _expand(found: Found, ignored: Counter[str]) -> Iterator[Item]:
    """The items of a file that an input contains."""
    expand = _EXPANSIONS.get(_suffix(found.path))
    if expand is None or found.problem:
        yield _whole(found)
        return
    try:
        yield from expand(found, ignored)
    except (UserError, OSError) as error:
        problem = one_line(error).removeprefix(f"{found.path}: ")
        yield _whole(found)._replace(problem=f"unreadable: {problem}")


def glob_root(path: str) -> str | None:
    """The folder that is searched for a glob; None if the path is no glob."""
    match = _GLOB.search(path)
    if match is None or storage.exists(path):
        return None
    return path[: match.start()].rpartition("/")[0] or "/"


def _from_glob(pattern: str, root: str, ignored: Counter[str]) -> Iterator[Item]:
    matches = _glob_regex(pattern).fullmatch
    if storage.is_folder(root):
        for found in walk(root, ignored):
            if matches(found.path):
                yield from _expand(found, ignored)


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """What a glob, or a folder that it matches, has as paths."""
    translated = []
    for part in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\]|.", pattern, re.DOTALL):
        if part == "**/":
            translated.append("(?:[^/]+/)*")
        elif part == "**":
            translated.append(".*")
        elif part in "*?":
            translated.append("[^/]*" if part == "*" else "[^/]")
        elif len(part) > 2:
            inside = part[1:-1].replace("\\", r"\\")
            translated.append(f"[{'^' + inside[1:] if inside[0] == '!' else inside}]")
        else:
            translated.append(re.escape(part))
    return re.compile(f"{''.join(translated)}(?:/.*)?", re.DOTALL)


def _from_paths(list_path: str, paths: Iterator[str], ignored: Counter[str]) -> Iterator[Item]:
    folder = posixpath.dirname(list_path)

    def absolute(path: str) -> str:
        return path if storage.is_remote(path) else storage.join(folder, path)

    with ThreadPoolExecutor(_LOOK_UP_THREADS) as threads:
        while chunk := [absolute(path) for path in itertools.islice(paths, _BATCH_ROWS)]:
            for found in threads.map(_find_listed, chunk):
                if not storage.is_remote(found.path) and os.path.isdir(path_bytes(found.path)):
                    for below in walk(found.path, ignored):
                        yield from _expand(below, ignored)
                else:
                    yield from _expand(found, ignored)


def _find_listed(path: str) -> Found:
    try:
        return find_file(path)
    except UserError as error:
        return Found(path, path, UNKNOWN, 0, f"unreadable: {one_line(error)}")


def _from_parquet(found: Found, _: Counter[str]) -> Iterator[Item]:
    """The rows of a Parquet file that contains images."""
    with storage.open_input(found.path) as file:
        parquet = open_parquet(file, found.path)
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    names: Iterable[str | None] = itertools.repeat(None, rows)
    image = schema.field("image").type if "image" in schema.names else pa.null()
    fields = [field.name for field in image] if pa.types.is_struct(image) else []
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image) or "bytes" in fields):
        raise UserError(
            f"{found.path}: has no column image with bytes (but {', '.join(schema.names)})"
        )
    if "key" in schema.names:
        names = strings_in_parquet(found.path, "key")
    elif "path" in fields:
        names = strings_in_parquet(found.path, "image.path")
    for row, name in enumerate(names):
        label = name if "key" in schema.names and name else f"{row:08d}"
        if name and label != name:
            label += f"-{posixpath.basename(name)}"
        path = f"{found.path}/{label}"
        yield Item(path, found.path, found.real, UNKNOWN, found.modified_ns, row=row)


def _from_tar(found: Found, ignored: Counter[str]) -> Iterator[Item]:
    """The members of an archive and of the archives inside it."""
    with storage.open_input(found.path) as file:

        def members(path: str, offset: int, size: int | None) -> Iterator[Item]:
            listed = list_range(file, path, offset, size)
            ignored.update(listed.ignored)
            for name, start, length in zip(*listed.members, strict=True):
                item = Item(
                    f"{path}/{name}",
                    found.path,
                    f"{found.real}{path[len(found.path) :]}/{name}\0{start}",
                    length,
                    found.modified_ns,
                    offset=start,
                )
                if length == NO_TARGET:
                    yield item._replace(problem="unreadable: a link to no file of the archive")
                elif _suffix(name) == ".tar":
                    try:
                        yield from members(item.path, start, length)
                    except UserError as error:
                        yield item._replace(problem=f"unreadable: {one_line(error)}")
                else:
                    yield item

        yield from members(found.path, 0, None)


_EXPANSIONS: dict[str, Callable[[Found, Counter[str]], Iterator[Item]]] = {
    ".tar": _from_tar,
    ".parquet": _from_parquet,
}
