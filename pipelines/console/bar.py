"""The text of a progress bar that fits into a number of columns."""

from collections.abc import Sequence

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from pipelines.console import live_line

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


def trimmed(text: str, columns: int) -> str:
    """A text that is cut off where it does not fit."""
    if disp_len(text) <= columns:
        return text
    return f"{disp_trim(text, columns - 3)}..." if columns > 3 else "." * columns
