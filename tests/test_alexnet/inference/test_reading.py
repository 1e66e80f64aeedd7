"""Reading the bytes of listed items."""

import tracemalloc
from pathlib import Path

from alexnet.inference.items import WHOLE, ListedItem
from alexnet.inference.reading import read_now


def test_reading_a_file_allocates_no_more_than_its_size(tmp_path: Path) -> None:
    """Larger blocks, even if they are freed at once, scatter what is allocated between them."""
    path = tmp_path / "image.jpg"
    path.write_bytes(b"x" * 100_000)
    item = ListedItem(str(path), str(path), 100_000, WHOLE, WHOLE, "")
    tracemalloc.start()
    try:
        content = read_now(item)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert content == b"x" * 100_000
    assert peak < 400_000
