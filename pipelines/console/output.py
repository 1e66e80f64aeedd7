"""Standard output and standard error as people have them: any encoding, and closed early."""

import io
import os
import select
import shutil
from typing import TextIO

OUTPUT_CLOSED = 141
"""Exit status as if SIGPIPE, which Python ignores, had ended the command."""


def take_any_text(*streams: TextIO) -> None:
    """Let streams write characters that their encoding does not have as escapes."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text on one line: control characters, such as those in file names, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def terminal_columns(stream: TextIO) -> int | None:
    """The number of columns if a stream is a terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def discard_if_closed(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more; then what is still buffered is discarded."""
    try:
        descriptor = stream.fileno()
    except OSError:  # Not a file: a test reads it.
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True
