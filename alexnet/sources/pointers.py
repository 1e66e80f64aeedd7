"""Images that have not been downloaded: small files that only name the content, as of Git LFS."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alexnet.sources.content import MAX_POINTER_BYTES, explain_pointer
from alexnet.sources.index import read_row

MIN_POINTER_BYTES = 40
CHECKED = 512
"""At most so many files are read, as an object store answers each request slowly."""

_THREADS = 16


def find_pointers(index: pa.Table) -> tuple[str, list[str]]:
    """Files that are pointers, and what they are; only files of the size of a pointer are read.

    Args:
        index: all rows, of which each is a byte range.

    Returns:
        A description of the kind with what to do, and the keys of those found.
    """
    sizes = index["size"]
    small = pc.and_(
        pc.greater_equal(sizes, MIN_POINTER_BYTES), pc.less_equal(sizes, MAX_POINTER_BYTES)
    )
    candidates = index.filter(small)
    chosen = np.unique(np.linspace(0, max(0, len(candidates) - 1), CHECKED, dtype=np.int64))
    rows = candidates.take(pa.array(chosen)).to_pylist() if len(candidates) else []
    with ThreadPoolExecutor(_THREADS) as threads:
        kinds = list(threads.map(lambda row: explain_pointer(_read(row)), rows))
    found = {row["key"]: kind for row, kind in zip(rows, kinds, strict=True) if kind}
    more = " at least" if found and len(candidates) > len(rows) else ""
    kind = next(iter(found.values()), "")
    return f"images not downloaded (each is {kind}){more}", list(found)


def _read(row: dict[str, object]) -> bytes:
    try:
        return read_row(row)
    except (OSError, EOFError):
        return b""
