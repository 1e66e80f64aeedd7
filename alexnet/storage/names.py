r"""File names as text that any file format can store, and back.

A local name is any bytes; Python holds those that are not UTF-8 as surrogates, which can't be
encoded. In text each of these bytes is an escape, ``\xff``. A backslash that would be mistaken for
the beginning of an escape is ``\x5c``. All other names, also those with line breaks, stay as they
are.
"""

import re

_SURROGATE = re.compile("[\udc80-\udcff]")
_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def name_to_text(name: str) -> str:
    """A name or a path, as ``os`` returns it, as valid Unicode."""
    if name.isascii() and "\\" not in name:
        return name  # Nearly every name; a listing of ten million saves a minute.
    text = _LIKE_AN_ESCAPE.sub(r"\\x5c", name)
    return _SURROGATE.sub(lambda match: rf"\x{ord(match[0]) - 0xDC00:02x}", text)


def text_to_name(text: str) -> str:
    """The inverse of ``name_to_text``."""

    def byte(match: re.Match[str]) -> str:
        value = int(match[1], 16)
        return chr(value if value < 0x80 else 0xDC00 + value)

    return _ESCAPE.sub(byte, text)
