"""Ray Data as in its documentation, for comparison.

python tests/benchmarks/peer_ray_data.py SOURCE OUTPUT
"""

import io
import sys

import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image


def convert(batch: dict[str, NDArray[np.object_]]) -> dict[str, list[object]]:
    images: list[object] = []
    for data in batch["bytes"]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = 256 / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        buffer = io.BytesIO()
        image.crop((left, top, left + 256, top + 256)).save(buffer, "JPEG", quality=95)
        images.append(buffer.getvalue())
    return {"key": list(batch["path"]), "image": images}


def main(source: str, output: str) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = ray.data.read_binary_files(source, include_paths=True)
    files.map_batches(convert, batch_size=64).write_parquet(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
