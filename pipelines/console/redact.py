"""Secrets removed from text before it is shown, logged or stored.

Secrets are recognized by their place in a URI or by the name before them. Those of the settings
(``remember_secrets``) are also recognized alone, as a library may show them, decoded or not.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast
from urllib.parse import quote, unquote

from alexnet.errors import one_line

MIN_REMEMBERED = 8
"""Characters. A shorter secret could be part of any word; alone it is not recognized."""

_HIDDEN = "***"

# Up to the last "@" before a space if the first part has a colon: a password may contain a slash.
# ``gs://anonymous@bucket`` is a public bucket.
_USER_INFO = re.compile(r"(?<=://)(?!anonymous@)([^/\s]*:\S*|[^/\s]*)@")
_NAMES = (
    r"(?:passwo?r?d|passphrase|pwd|token|secret|credential|signature"
    r"|(?:access|account|api|private|shared|encryption)[_-]?key)[\w.-]*"
    r"|\b(?:sig|pass|auth|key)"
)
# The value of ``password=...``, also with an encoded "=", and of ``'password': '...'``; closing
# quotation marks, brackets and punctuation at its end stay.
_NAMED = re.compile(
    rf"(?i)(?P<name>{_NAMES})(?:(?P<equals>=|%3D)(?P<value>[^&\s]+?)(?=['\")\]}},;.:]*(?:[&\s]|$))"
    r"|(?P<quoted>['\"]\s*:\s*['\"])(?P<string>[^'\"]+))"
)
_remembered: set[str] = set()


def redacted(text: str) -> str:
    """The text without user names and passwords in URIs, and without secrets that have a name."""
    for secret in sorted(_remembered, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = _NAMED.sub(_without_value, _without_user(text))
    return _without_user(text)


def shortened(error: BaseException, length: int) -> str:
    """An error's text on one line without secrets, cut off where it is longer.

    A secret that is cut before it is removed could no longer be recognized.
    """
    return redacted(one_line(error))[:length]


def _without_user(text: str) -> str:
    return _USER_INFO.sub(f"{_HIDDEN}@", text)


def _without_value(match: re.Match[str]) -> str:
    return f"{match['name']}{match['equals'] or match['quoted']}{_HIDDEN}"


def remember_secrets(value: object) -> None:
    """From now on, ``redacted`` removes the secrets of a URI, or of a list of URIs, everywhere."""
    if isinstance(value, list | tuple):
        for part in value:
            remember_secrets(part)
        return
    text = str(value)
    _, scheme, rest = text.partition("://")
    user_info, at, _ = rest.rpartition("@")
    secrets = [match["value"] or match["string"] for match in _NAMED.finditer(text)]
    if scheme and at:
        user, colon, password = user_info.partition(":")
        secrets.append(password if colon else user)
    for secret in secrets:
        plain = unquote(secret)
        forms = {secret, plain, quote(plain, safe="")}
        _remembered.update(form for form in forms if len(form) >= MIN_REMEMBERED)


class SecretUri:
    """A URI that is shown without its secrets.

    Ray keeps and shows what jobs and actors are given: strings, fields of dataclasses, and the
    ``str`` of all other objects. Pickling keeps the secrets.
    """

    __slots__ = ("_uri",)

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def __repr__(self) -> str:
        return redacted(self._uri)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretUri) and other._uri == self._uri

    def __hash__(self) -> int:
        return hash(self._uri)

    def reveal(self) -> str:
        """The URI with its secrets, to connect with."""
        return self._uri


class _RedactedStream:
    """A text stream whose text is redacted, whichever library writes it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_output() -> Iterator[None]:
    """Inside, standard output and standard error of this process are redacted."""
    with (
        contextlib.redirect_stdout(cast(TextIO, _RedactedStream(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _RedactedStream(sys.stderr))),
    ):
        yield
