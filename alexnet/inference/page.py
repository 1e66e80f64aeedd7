"""Predictions as an HTML page with thumbnails that works from disk, without a server.

    <output>/report.html                        up to ``PAGE_ROWS`` images
    <output>/report/index.html, page-0001.html  more: one page for every ``PAGE_ROWS``

File names, labels and reasons are text: they are escaped, and the pages forbid all that they do not
contain themselves.
"""

import base64
import html
import itertools
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template
from typing import NamedTuple

from alexnet import storage
from alexnet.inference.rows import THUMBNAIL_SIZE

PAGE, PAGES = "report.html", "report"
PAGE_ROWS = 300
"""Images on a page: some 2 MB."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


class PageRow(NamedTuple):
    """One image on a page."""

    path: str
    reason: str | None
    """Why it was rejected; None if it was not."""
    names: Sequence[str]
    """Of the labels, best first."""
    probabilities: Sequence[float]
    thumbnail: bytes
    """A JPEG."""


class _PageCounts(NamedTuple):
    images: int
    rejected: int
    mean_confidence: float


def write_pages(output: str, rows: Iterable[PageRow], total: int, title: str) -> str:
    """Write the page, or the pages and their index; returns the path of what to open.

    Args:
        output: folder.
        rows: the images.
        total: their number.
        title: of the page.
    """
    rows = iter(rows)
    single = storage.join(output, PAGE)
    if total <= PAGE_ROWS:
        _write(single, title, _images(list(rows)))
        storage.delete_folder(storage.join(output, PAGES))
        return single
    index = storage.join(output, PAGES, "index.html")
    last = -(-total // PAGE_ROWS)
    counts: list[_PageCounts] = []
    for number in range(1, last + 1):
        page = list(itertools.islice(rows, PAGE_ROWS))
        counts.append(_count(page))
        name = storage.join(output, PAGES, _page_name(number))
        _write(name, f"{title}, page {number} of {last}", _links(number, last) + _images(page))
    _write(index, title, _table(counts))
    if storage.is_file(single):
        storage.delete_file(single)
    return index


def _write(path: str, title: str, body: str) -> None:
    template = Template((files("alexnet.inference") / "page.html").read_text(encoding="utf-8"))
    storage.write_bytes(path, template.substitute(title=_text(title), body=body).encode())


def _text(value: str) -> str:
    """Text as HTML, also inside of quotation marks; control characters are visible."""
    return html.escape(_CONTROL_CHARACTER.sub(lambda m: rf"\x{ord(m[0]):02x}", value))


def _images(rows: Sequence[PageRow]) -> str:
    labels = sorted({row.names[0] for row in rows if row.names})
    options = "".join(f'<option value="{_text(label)}">{_text(label)}</option>' for label in labels)
    items = "".join(_item(index, row) for index, row in enumerate(rows))
    script = (files("alexnet.inference") / "page.js").read_text(encoding="utf-8")
    return f"""<form id="filters">
<label>Label <select name="label"><option value="">all</option>{options}</select></label>
<label>Files <select name="status"><option value="">all</option>
<option value="ok">predicted</option><option value="rejected">rejected</option></select></label>
<label>Confidence from <input name="least" type="number" min="0" max="100" value="0"> %</label>
<label>to <input name="most" type="number" min="0" max="100" value="100"> %</label>
<label>Order <select name="order"><option value="listed">as listed</option>
<option value="uncertain">uncertain first</option><option value="certain">certain first</option>
</select></label>
<output id="count" aria-live="polite"></output>
</form>
<ul id="images">{items}</ul>
<script>{script}</script>
"""


def _item(index: int, row: PageRow) -> str:
    confidence = row.probabilities[0] if row.probabilities else 0.0
    status = "ok" if row.reason is None else "rejected"
    best = row.names[0] if row.names else ""
    if row.reason is None:
        bars = "".join(
            f'<li style="--p:{100 * p:.2f}%"><span title="{_text(name)}">{_text(name)}</span>'
            f"<span>{100 * p:.1f} %</span></li>"
            for name, p in zip(row.names[:5], row.probabilities[:5], strict=True)
        )
        result = f"<ol>{bars}</ol>"
    else:
        result = f'<p class="reason">{_text(row.reason)}</p>'
    data = base64.b64encode(row.thumbnail).decode()
    return (
        f'<li tabindex="0" data-index="{index}" data-status="{status}" '
        f'data-confidence="{confidence:.6f}" data-label="{_text(best)}">'
        f'<img alt="" width="{THUMBNAIL_SIZE}" height="{THUMBNAIL_SIZE}" '
        f'src="data:image/jpeg;base64,{data}">{result}'
        f'<bdi class="path">{_text(row.path)}</bdi></li>\n'
    )


def _page_name(number: int) -> str:
    return f"page-{number:04d}.html"


def _links(number: int, last: int) -> str:
    before = f'<a href="{_page_name(number - 1)}" rel="prev">previous</a>' if number > 1 else ""
    after = f'<a href="{_page_name(number + 1)}" rel="next">next</a>' if number < last else ""
    return f'<nav><a href="index.html">all pages</a>{before}{after}</nav>\n'


def _count(rows: Sequence[PageRow]) -> _PageCounts:
    best = [row.probabilities[0] for row in rows if row.probabilities]
    rejected = sum(row.reason is not None for row in rows)
    return _PageCounts(len(rows), rejected, sum(best) / len(best) if best else 0.0)


def _table(counts: Sequence[_PageCounts]) -> str:
    lines = "".join(
        f'<tr><th scope="row"><a href="{_page_name(number)}">{number}</a></th>'
        f"<td>{page.images}</td><td>{page.rejected}</td>"
        f"<td>{100 * page.mean_confidence:.1f} %</td></tr>\n"
        for number, page in enumerate(counts, 1)
    )
    return (
        "<table><thead><tr><th>page</th><th>images</th><th>rejected</th>"
        f"<th>mean confidence</th></tr></thead><tbody>{lines}</tbody></table>\n"
    )
