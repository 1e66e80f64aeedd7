"""Texts for the updating line in a terminal, which fit into a number of columns: a bar, a wait.

Secrets are removed before a text is cut: a part of one could not be recognized any more.
"""

from collections.abc import Sequence

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from pipelines.console import live_line
from pipelines.console.output import printable
from pipelines.console.redact import redacted

MIN_COLUMNS = 5
"""Of the bar itself, with its ends; in less, it shows too little."""
MAX_COLUMNS = 32


def bar_line(stage: str, done: int, total: int, parts: Sequence[str], columns: int) -> str:
    """``train  12%|█▏        | 3m20s left, loss 6.905``.

    Args:
        stage: whose progress it is.
        done: of ``total``, in any unit.
        total: 0 if there is nothing to do.
        parts: what is told, the most important first; the last ones are left out if there is no
            room for them, and then the bar.
        columns: at most.
    """
    parts = [_without_secrets(part) for part in parts]
    percent = 100 * done // total if total else 100
    start = f"{stage} {percent:3d}%"
    room = columns - len(start) - MIN_COLUMNS - 1
    text = parts[0] if parts else ""
    for part in parts[1:]:
        if disp_len(f"{text}, {part}") > room:
            break
        text = f"{text}, {part}"
    width = min(columns - len(start) - disp_len(text) - 1, MAX_COLUMNS)
    if width < MIN_COLUMNS:
        return str(disp_trim(f"{start} {text}", columns))
    bar = tqdm.format_meter(
        done, total or 1, 0, ncols=width, bar_format="|{bar}|", ascii=not live_line.encodes("▏█")
    )
    return f"{start}{bar} {text}".rstrip()


def wait_line(text: str, seconds: float, columns: int) -> str:
    """``train: waiting for the workers to start (14s)``; a text that is too long is cut."""
    end = f" ({int(seconds)}s)"
    text, room = _without_secrets(text), columns - len(end)
    if disp_len(text) > room:
        text = f"{disp_trim(text, room - 3)}..." if room > 3 else "." * max(room, 0)
    return str(disp_trim(f"{text}{end}", columns))


def _without_secrets(text: str) -> str:
    return redacted(printable(text))
