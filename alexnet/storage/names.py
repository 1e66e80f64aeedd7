r"""Local paths as text, also those whose bytes are not UTF-8.

On Linux a name is bytes; tables, JSON files, databases and terminals need text. A byte that is not
UTF-8 becomes ``\xe9``. A backslash of the name itself that would read as the begin of such an
escape becomes ``\x5c``. So different names have different texts, and every other name is its text.
"""

import os
import re

_UNDECODABLE = rb"[89a-f][0-9a-f]|5c"
_LIKE_AN_ESCAPE = re.compile(rb"\\x(?=" + _UNDECODABLE + rb")")
_ESCAPE = re.compile(rb"\\x(" + _UNDECODABLE + rb")")


def path_text(path: str | bytes) -> str:
    """The text of a path or name as the operating system gives it."""
    escaped = _LIKE_AN_ESCAPE.sub(rb"\\x5cx", os.fsencode(path))
    return escaped.decode("utf-8", "backslashreplace")


def path_bytes(text: str) -> bytes:
    """The inverse of ``path_text``."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.encode())
