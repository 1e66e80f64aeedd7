"""The writers of other formats, over the same images as ``preprocess.py``, for comparison.

    python tests/benchmarks/peer_writers.py litdata|streaming|ffcv SOURCE OUTPUT

Each is used as its documentation says, with two processes. What is made of an image is that of
``peer_pool.py``: decoded and resized by Pillow, stored as a JPEG of quality 95. FFCV encodes the
pixels itself.
"""

import sys
from io import BytesIO
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from peer_pool import convert
from PIL import Image

WORKERS = 2


def litdata(paths: list[Path], output: Path) -> None:
    from litdata import optimize

    optimize(convert, paths, str(output), num_workers=WORKERS, chunk_bytes="64MB")


def write_mds(part: tuple[list[Path], Path]) -> None:
    """One process's part: a writer of its own, as Streaming's documentation proposes."""
    from streaming import MDSWriter

    paths, output = part
    columns = {"key": "str", "label": "str", "image": "bytes", "w": "int", "h": "int"}
    with MDSWriter(out=str(output), columns=columns) as sink:
        for path in paths:
            sink.write(convert(path))


def streaming(paths: list[Path], output: Path) -> None:
    from streaming.base.util import merge_index

    parts = [(paths[number::WORKERS], output / str(number)) for number in range(WORKERS)]
    with Pool(WORKERS) as pool:
        pool.map(write_mds, parts)
    merge_index(str(output))


def ffcv(paths: list[Path], output: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    labels = {name: number for number, name in enumerate(sorted({p.parent.name for p in paths}))}

    class Images:
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> Any:
            row = convert(paths[number], encode=False)
            return np.asarray(row["image"]), labels[str(row["label"])]

    output.mkdir(parents=True)
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}
    writer = DatasetWriter(str(output / "images.beton"), fields, num_workers=WORKERS)
    writer.from_indexed_dataset(Images())


def count(peer: str, output: Path) -> int:
    """The images that a peer has written, read by the peer itself."""
    if peer == "litdata":
        from litdata import StreamingDataset

        images: Any = StreamingDataset(str(output))
    elif peer == "streaming":
        from streaming import StreamingDataset as Mds

        images = Mds(local=str(output), batch_size=1)
    else:
        from ffcv.reader import Reader

        return int(Reader(str(output / "images.beton")).num_samples)
    assert Image.open(BytesIO(images[0]["image"])).size == (256, 256)
    return len(images)


if __name__ == "__main__":
    name, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    files = sorted(source.rglob("*.JPEG"))
    {"litdata": litdata, "streaming": streaming, "ffcv": ffcv}[name](files, target)
    assert count(name, target) == len(files)
