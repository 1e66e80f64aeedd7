"""What a file is that can't be read as what it should be, and what to do: known by its first bytes.

Pointers of Git LFS and git-annex stand in place of files that have not been downloaded; archives
come compressed; a download without a login is a web page.
"""

import re

from alexnet import storage

HEAD_BYTES = 512
"""Bytes that are enough to recognize a file."""

MAX_POINTER_BYTES = 400
"""A pointer is never larger."""

_POINTERS = (
    (re.compile(rb"version https://git-lfs\.github\.com/spec/"), "Git LFS", "git lfs pull"),
    (re.compile(rb"/annex/objects/[!-~]+\n"), "git-annex", "git annex get"),
)

_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "ZIP"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
    (b"Rar!", "RAR"),
)

_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)


def explain_pointer(head: bytes) -> str | None:
    """``a pointer of Git LFS, …`` if the content is a pointer instead of a file's own content."""
    for pattern, system, command in _POINTERS:
        if pattern.match(head):
            return f"a pointer of {system}, not the file itself; run `{command}` in the repository"
    return None


def explain_content(head: bytes) -> str | None:
    """What a file is and what to do, in a phrase; None if it is not recognized.

    Args:
        head: its first ``HEAD_BYTES`` bytes.
    """
    if not head.strip(b"\0"):
        return "empty, as after an interrupted download; download it again"
    if pointer := explain_pointer(head):
        return pointer
    for start, method in _COMPRESSED:
        if head.startswith(start):
            return f"compressed ({method}), but is read in place; decompress or unpack it"
    if _WEB_PAGE.match(head):
        return "a web page, as after a download without a login; download it while logged in"
    return None


def explain_file(path: str) -> str | None:
    """The same of a file; None also if it can't be read."""
    try:
        with storage.open_input(path) as file:
            return explain_content(file.read(HEAD_BYTES))
    except OSError:
        return None
