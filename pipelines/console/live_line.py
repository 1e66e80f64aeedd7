"""One updating line at the bottom of a terminal; everything else is written above it.

The line is shown in commands only (``enabled``), on standard error, if that is a terminal that can
erase a line, and if standard output is not piped into a program that may write to the same
terminal. Otherwise nothing is written, and standard error is left alone.

While the line is shown, standard error is a pipe: what is written to it, by Python, by C++ code or
by child processes, appears above the line. Standard output is written inside ``above``.
"""

import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

INTERVAL_S = 0.25
"""Seconds between two updates."""

Source = Callable[[int], str]
"""The line's text for a number of columns: at most as long, printable, without secrets; empty if
there is nothing to show. It is called often and must not wait for anything."""

_STDOUT, _STDERR = 1, 2
_ERASE = b"\r\x1b[K"
_END = b"\0end\n"
"""Written to the pipe after everything else."""
_TIMEOUT_S = 1.0
_DEFAULT_COLUMNS = 80


@dataclass(slots=True)
class _State:
    enabled: bool = False
    sources: list[Source] = field(default_factory=list)
    """The last one that has a text is shown."""
    terminal: int | None = None
    """A file descriptor, from the first source to the last line above it."""
    pipe: int | None = None
    """The writing end, which is never closed: child processes may have it too."""
    drawn: str = ""
    """The text in the terminal's last line."""
    updated: bool = False
    """A thread draws the line again and again."""


_state = _State()
_lock = threading.RLock()
"""Held while the state is used, or something is written to the terminal."""
_emptied = threading.Event()
"""Set when all that was in the pipe is written."""


@contextlib.contextmanager
def enabled(on: bool) -> Iterator[None]:
    """Inside, lines are shown, if ``on``. At the end the terminal is as it was before."""
    _state.enabled = on
    try:
        yield
    finally:
        _state.enabled = False
        close()


@contextlib.contextmanager
def shown(source: Source) -> Iterator[None]:
    """Inside, show a line, above which output appears; at the end it is erased.

    Of several blocks, in any threads, the line of the one that began last is shown.
    """
    with _lock:
        on = _state.enabled and (bool(_state.sources) or _is_suitable())
        if on:
            _state.sources.append(source)
            _capture_stderr()
    try:
        yield
    finally:
        with _lock:
            if on and source in _state.sources:
                _state.sources.remove(source)
                _draw(changed=True)
            last = on and not _state.sources
        if last:
            close()


@contextlib.contextmanager
def above(stream: TextIO) -> Iterator[None]:
    """Inside, complete lines can be written to a stream; on a terminal they are above the line."""
    with _lock:
        replaced = replaces_lines(stream)
        if replaced:
            _write(_ERASE)
        yield
        if replaced:
            _draw()


def is_shown() -> bool:
    """Whether a line is shown, in a block of any thread."""
    return bool(_state.sources)


def replaces_lines(stream: TextIO) -> bool:
    """Whether those who read a stream see the line, and so need no lines about progress."""
    return is_shown() and stream.isatty()


def close() -> None:
    """Erase the line, show no more of it, and give standard error back."""
    # Another thread may hold the lock, blocked by the terminal: a command must end all the same.
    locked = _lock.acquire(timeout=_TIMEOUT_S)
    _state.sources.clear()
    _state.drawn = ""
    terminal, pipe = _state.terminal, _state.pipe
    if terminal is not None:
        os.dup2(terminal, _STDERR)
    if locked:
        _lock.release()
    if terminal is None or pipe is None:
        return
    _emptied.clear()
    os.write(pipe, _END)
    _emptied.wait(_TIMEOUT_S)
    with _lock:
        if not _state.sources and _state.terminal is not None:
            _write(_ERASE)
            os.close(_state.terminal)
            _state.terminal = None


def encodes(text: str) -> bool:
    """Whether the terminal's encoding has all characters of a text."""
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def _encoding() -> str:
    return sys.stderr.encoding or "utf-8"


def _is_suitable() -> bool:
    """Whether standard error is a terminal, and no program reads standard output."""
    try:
        piped = stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)
    except OSError:  # It is closed.
        piped = False
    return os.isatty(_STDERR) and not piped and os.environ.get("TERM", "dumb") != "dumb"


def _capture_stderr() -> None:
    """Make standard error a pipe, unless it is one, and start the threads."""
    if _state.pipe is None:
        reading, _state.pipe = os.pipe()
        threading.Thread(target=_pass_on, args=(reading,), name="lines-above", daemon=True).start()
    if not _state.updated:
        _state.updated = True
        threading.Thread(target=_update, name="live-line", daemon=True).start()
    if len(_state.sources) == 1:
        sys.stderr.flush()
        if _state.terminal is None:
            _state.terminal = os.dup(_STDERR)
        os.dup2(_state.pipe, _STDERR)


def _pass_on(reading: int) -> None:
    """Write the pipe's lines to the terminal."""
    with open(reading, "rb") as lines:
        for line in lines:
            text = line.removesuffix(_END)
            if text:
                with _lock:
                    _write(_ERASE + text.removesuffix(b"\n") + b"\n")
                    _draw()
            if text != line:
                _emptied.set()


def _update() -> None:
    """Draw the line again and again, since times change, until there are no sources."""
    while True:
        with _lock:
            if not _state.sources:
                _state.updated = False
                return
            _draw(changed=True)
        time.sleep(INTERVAL_S)


def _draw(*, changed: bool = False) -> None:
    """Draw the line; if ``changed``, only if it is another one than before."""
    text = _text(_columns())
    if _state.sources and not (changed and text == _state.drawn):
        _write(_ERASE + text.encode(_encoding(), "replace"))
        _state.drawn = text


def _write(text: bytes) -> None:
    """Write to the terminal, which may be gone."""
    target = _STDERR if _state.terminal is None else _state.terminal
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(target, text) :]


def _columns() -> int:
    """Fewer than the terminal has: the cursor stays in the line, even behind "^C"."""
    columns = 0
    if _state.terminal is not None:
        with contextlib.suppress(OSError):
            columns = os.get_terminal_size(_state.terminal).columns
    return (columns or _DEFAULT_COLUMNS) - 3


def _text(columns: int) -> str:
    for source in reversed(_state.sources):
        with contextlib.suppress(Exception):
            if text := source(columns):
                return text
    return ""
