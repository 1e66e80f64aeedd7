"""What others write for bulk inference, for comparison; prints images per second as JSON.

python tests/benchmarks/peer_inference.py model|loader|ray WORKDIR FOLDER VIEWS

``model``: only the exported model, on decoded images. ``loader``: a plain script with a DataLoader.
``ray``: Ray Data as in its documentation. Each uses the registered model of the workdir; the rate
counts from the end of the first batch to the end of the last.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet.training.augment import ten_crop

BATCH = 32
MODEL = "models:/alexnet@champion"


def load(workdir: str) -> Callable[[Tensor], Tensor]:
    mlflow.set_tracking_uri(f"sqlite:///{workdir}/mlflow.db")
    model: Callable[[Tensor], Tensor] = mlflow.pytorch.load_model(MODEL)
    return model


def decode(data: bytes) -> NDArray[np.uint8]:
    """256x256, with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    return np.asarray(image.crop((left, top, left + 256, top + 256)))


def predict(model: Callable[[Tensor], Tensor], images: Tensor, views: int) -> Tensor:
    with torch.no_grad():
        crops = ten_crop(images) if views > 1 else images[None, :, 16:240, 16:240]
        return torch.stack([model(view) for view in crops]).mean(dim=0)


def only_model(workdir: str, folder: str, views: int) -> list[tuple[float, int]]:
    model = load(workdir)
    paths = sorted(Path(folder).glob("*"))[:BATCH]
    images = torch.from_numpy(np.stack([decode(path.read_bytes()) for path in paths]))
    ends = []
    for _ in range(max(4, 240 // (BATCH * views // 3 + 1))):
        predict(model, images, views)
        ends.append((time.monotonic(), len(images)))
    return ends


class Files(Dataset[Tensor]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(decode(self.paths[index].read_bytes()).copy())


def loader(workdir: str, folder: str, views: int) -> list[tuple[float, int]]:
    model = load(workdir)
    ends = []
    files = Files(sorted(Path(folder).glob("*")))
    for images in DataLoader(files, batch_size=BATCH, num_workers=2):
        predict(model, images, views).topk(5)
        ends.append((time.monotonic(), len(images)))
    return ends


class Model:
    def __init__(self, workdir: str, views: int) -> None:
        self.model, self.views = load(workdir), views

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = torch.from_numpy(np.stack(list(batch["image"])))
        best = predict(self.model, images, self.views).topk(5)
        return {
            "path": batch["path"],
            "labels": best.indices.numpy(),
            "end": np.full(len(images), time.time()),
        }


def ray_data(workdir: str, folder: str, views: int) -> list[tuple[float, int]]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def decode_batch(batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        images = np.stack([decode(data) for data in batch["bytes"]])
        return {"path": batch["path"], "image": images}

    output = Path(workdir) / f"ray-{time.time()}"
    (
        ray.data.read_binary_files(folder, include_paths=True)
        .map_batches(decode_batch, batch_size=BATCH)
        .map_batches(
            Model, fn_constructor_args=(workdir, views), batch_size=BATCH, concurrency=1, num_cpus=1
        )
        .write_parquet(str(output))
    )
    ends = ray.data.read_parquet(str(output)).to_pandas()["end"]
    return [(float(end), int(rows)) for end, rows in ends.value_counts().items()]


def main(kind: str, workdir: str, folder: str, views: int) -> None:
    functions = {"model": only_model, "loader": loader, "ray": ray_data}
    ends = sorted(functions[kind](workdir, folder, views))
    rows = sum(count for _, count in ends[1:])
    print(json.dumps({"images_per_second": rows / (ends[-1][0] - ends[0][0])}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
