"""A simple script for comparison: Pool(2), Pillow and pyarrow.

python tests/benchmarks/peer_pool.py SOURCE OUTPUT ROWS_PER_SHARD
"""

import io
import sys
from multiprocessing import Pool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def convert(path: Path, *, encode: bool = True) -> dict[str, object]:
    """The row of an image file; without ``encode`` with its pixels instead of a JPEG."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    image = image.crop((left, top, left + 256, top + 256))
    row: dict[str, object] = {"key": path.name, "label": path.parent.name, "w": width, "h": height}
    if not encode:
        return row | {"image": image}
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return row | {"image": buffer.getvalue()}


def main(source: Path, output: Path, rows_per_shard: int) -> None:
    output.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    written = 0

    def write() -> None:
        nonlocal rows, written
        pq.write_table(pa.Table.from_pylist(rows), output / f"{written:05d}.parquet")
        rows, written = [], written + 1

    with Pool(2) as pool:
        for row in pool.imap_unordered(convert, sorted(source.rglob("*.JPEG")), chunksize=32):
            rows.append(row)
            if len(rows) == rows_per_shard:
                write()
    if rows:
        write()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
