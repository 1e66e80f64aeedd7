"""Secrets removed from text before it is shown, logged or stored."""

import re

_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(
    r"(?i)\b(password|passwd|pwd|token|secret|access_key|secret_key|api_key|sslpassword)=[^&\s'\"]+"
)


def redacted(text: str) -> str:
    """The text without user names and passwords in URIs, and without passwords in queries."""
    return _QUERY.sub(r"\1=***", _USER_INFO.sub("***@", text))
