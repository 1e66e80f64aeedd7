"""The loaders of ``input_race.py``, one process each.

    python tests/benchmarks/race_peers.py PEER WORK FOLDER EPOCHS

Every peer is set up as its documentation says, with two workers or threads. The first epoch is not
measured: in it, each image has to be delivered once (its label is its number), and the mean of all
delivered values is computed. Some peers leave out the colour noise, which is work that they save.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image

BATCH = 128
WORKERS = 2
MEAN = 120.0
BATCHES_BEFORE_STEADY = 5
COVARIANCE = np.diag([4800.0, 4700, 5100])
"""Of colours, for the project's colour noise."""

Batches = Iterator[tuple[Any, Any]]
"""Images and labels of each batch."""


def project(work: str, folder: Path) -> Callable[[int], Batches]:
    from alexnet.recipes import PAPER
    from alexnet.shards.loader import ShardLoader
    from alexnet.shards.manifest import read_manifest
    from alexnet.training.augment import pca_axes
    from alexnet.training.crops import Augmentation, crop_buffers, crops_while_decoding

    encoding, kind = work.split("_")
    manifest = read_manifest(str(folder / encoding))
    loader = ShardLoader(manifest=manifest, batch_size=BATCH, seed=0, threads=WORKERS)
    axes, mean, buffers = pca_axes(PAPER, COVARIANCE), torch.full((3, 224, 224), MEAN), None
    gc.freeze()  # As in every training worker.

    def epoch(number: int) -> Batches:
        nonlocal buffers
        buffers = buffers or crop_buffers()
        how = Augmentation(recipe=PAPER, pca_axes=axes, seed=0, epoch=number)
        start = crops_while_decoding(how, mean, buffers) if kind == "float" else None
        for batch in loader.epoch(number, 0, start):
            yield batch.images, batch.labels
            del batch

    return epoch


def converted(path: Path, convert: Callable[[Path], object]) -> Path:
    """The path, at which the images are in a peer's format; converted at its first use."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
        convert(unfinished)
        unfinished.rename(path)
    return path


def decode_and_crop(data: bytes) -> NDArray[np.float32]:
    """A JPEG → (224, 224, 3): cropped, mirrored at random, without the mean.

    For all loaders that leave this to the user; Pillow is what their documentation uses.
    """
    return random_crop(np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def random_crop(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(256, 256, 3) → (224, 224, 3): cropped, mirrored at random, without the mean."""
    top, left, mirrored = np.random.randint(33), np.random.randint(33), np.random.randint(2)
    crop = pixels[top : top + 224, left : left + 224]
    result = (crop[:, ::-1] if mirrored else crop).astype(np.float32, order="C")
    result -= MEAN
    return result


def channels_first(batches: Any) -> Batches:
    """Batches of (b, 224, 224, 3) arrays or tensors → (b, 3, 224, 224) tensors, the same memory."""
    for images, labels in batches:
        yield torch.as_tensor(images).permute(0, 3, 1, 2), labels


class Files(torch.utils.data.Dataset[Any]):
    """The files, for a ``DataLoader``."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted((folder / "files").iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        return decode_and_crop(self.paths[number].read_bytes()), number


def data_loader(work: str, folder: Path) -> Callable[[int], Batches]:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        Files(folder), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return lambda _: channels_first(loader)


def ffcv(work: str, folder: Path) -> Callable[[int], Batches]:
    from dataclasses import replace

    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.transforms import ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    encoding, kind = work.split("_")

    class Images:
        paths = sorted((folder / "files").iterdir())

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, number: int) -> Any:
            return np.asarray(Image.open(self.paths[number]).convert("RGB")), number

    def convert(path: Path) -> None:
        image = RGBImageField(write_mode="jpg" if encoding == "jpeg" else "raw", jpeg_quality=95)
        fields = {"image": image, "label": IntField()}
        DatasetWriter(str(path), fields, num_workers=WORKERS).from_indexed_dataset(Images())

    path = converted(folder / f"{encoding}.beton", convert)

    shape, mean = (224, 224, 3), np.float32(MEAN)

    class CropMirrorSubtract(Operation):  # type: ignore[misc]
        """All in one pass: FFCV has no random crop, and its own operations take a pass each."""

        def generate_code(self) -> Any:
            parallel = Compiler.get_iterator()

            def crop(images: Any, result: Any) -> Any:
                for i in parallel(images.shape[0]):
                    top, left = np.random.randint(0, 33), np.random.randint(0, 33)
                    mirrored = np.random.random() < 0.5
                    image = images[i].reshape(256, 768)
                    for y in range(224):
                        row = image[top + y, 3 * left : 3 * left + 672]
                        crop_row = result[i, y].reshape(672)
                        if mirrored:
                            # Unsigned, so that Numba does not check for negative indices.
                            target, source, step = np.uint64(0), np.uint64(669), np.uint64(3)
                            one, two = np.uint64(1), np.uint64(2)
                            for _ in range(224):
                                crop_row[target] = row[source] - mean
                                crop_row[target + one] = row[source + one] - mean
                                crop_row[target + two] = row[source + two] - mean
                                target += step
                                source -= step
                        else:
                            for x in range(672):
                                crop_row[x] = row[x] - mean
                return result[: images.shape[0]]

            crop.is_parallel = True  # type: ignore[attr-defined]
            return crop

        def declare_state_and_memory(self, state: Any) -> Any:
            dtype = np.dtype("float32")
            return replace(state, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    pipeline = [SimpleRGBImageDecoder()]
    if kind == "float":
        pipeline.append(CropMirrorSubtract())
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=WORKERS,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={
            "image": [*pipeline, ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return lambda _: iter(loader)


def webdataset(work: str, folder: Path) -> Callable[[int], Batches]:
    import webdataset as wds

    def convert(tars: Path) -> None:
        tars.mkdir()
        with wds.ShardWriter(f"{tars}/%05d.tar", maxcount=512, verbose=0) as sink:
            for number, path in enumerate(sorted((folder / "files").iterdir())):
                sink.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": number})

    urls = sorted(map(str, converted(folder / "tars", convert).iterdir()))
    samples = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).to_tuple("jpg", "cls")
    batches = samples.map_tuple(decode_and_crop, int).batched(BATCH)
    loader = wds.WebLoader(batches, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda _: channels_first(loader)


def as_sample(path: Path) -> Any:
    return {"image": path.read_bytes(), "label": int(path.stem)}


def image_and_label(sample: Any) -> Any:
    return decode_and_crop(sample["image"]), sample["label"]


def litdata(work: str, folder: Path) -> Callable[[int], Batches]:
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    def convert(output: Path) -> None:
        paths = sorted((folder / "files").iterdir())
        optimize(as_sample, paths, str(output), num_workers=WORKERS, chunk_bytes="16MB")

    output = converted(folder / "litdata", convert)
    dataset = StreamingDataset(str(output), shuffle=True, transform=image_and_label)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS)
    return lambda _: channels_first(loader)


def streaming(work: str, folder: Path) -> Callable[[int], Batches]:
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    def convert(output: Path) -> None:
        with MDSWriter(out=str(output), columns={"image": "bytes", "label": "int"}) as sink:
            for path in sorted((folder / "files").iterdir()):
                sink.write(as_sample(path))

    output = converted(folder / "mds", convert)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return image_and_label(super().__getitem__(index))

    dataset = Images(local=str(output), shuffle=True, batch_size=BATCH)
    loader: Any = DataLoader(dataset, BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda _: channels_first(loader)


def grain(work: str, folder: Path) -> Callable[[int], Batches]:
    import grain as library

    paths = sorted((folder / "files").iterdir())

    def load(path: Path) -> Any:
        return decode_and_crop(path.read_bytes()), int(path.stem)

    def epoch(number: int) -> Batches:
        data = library.MapDataset.source(paths).shuffle(seed=number).map(load)
        options = library.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=2 * BATCH)
        yield from channels_first(data.to_iter_dataset(options).batch(BATCH))

    return epoch


def spdl_batches(pieces: Iterable[Any], load: Callable[[Any], Any]) -> Batches:
    """Batches that SPDL's threads load, a piece of the source each."""
    from spdl.pipeline import PipelineBuilder

    builder = PipelineBuilder().add_source(pieces).pipe(load, concurrency=WORKERS).add_sink(3)
    with (pipeline := builder.build(num_threads=WORKERS)).auto_stop():
        yield from channels_first(pipeline.get_iterator())


def spdl(work: str, folder: Path) -> Callable[[int], Batches]:
    import spdl.io

    paths = sorted((folder / "files").iterdir())

    def load(numbers: list[int]) -> Any:
        packets = [spdl.io.demux_image(str(paths[number])) for number in numbers]
        frames = [spdl.io.decode_packets(packet) for packet in packets]
        buffer = spdl.io.convert_frames(frames)
        images = spdl.io.to_numpy(buffer)
        return np.stack([random_crop(image) for image in images]), np.array(numbers)

    def epoch(number: int) -> Batches:
        order = np.random.default_rng(number).permutation(len(paths)).tolist()
        pieces = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        return spdl_batches(pieces, load)

    return epoch


def tf_data(work: str, folder: Path) -> Callable[[int], Batches]:
    import tensorflow as tf

    paths = [str(path) for path in sorted((folder / "files").iterdir())]

    def load(path: Any, number: Any) -> Any:
        corner = tf.random.uniform((2,), 0, 33, tf.int32)
        window = tf.concat([corner, [224, 224]], 0)
        image = tf.image.decode_and_crop_jpeg(
            tf.io.read_file(path), window, 3, dct_method="INTEGER_ACCURATE"
        )
        return tf.cast(tf.image.random_flip_left_right(image), tf.float32) - MEAN, number

    data = tf.data.Dataset.from_tensor_slices((paths, list(range(len(paths)))))
    data = data.shuffle(len(paths)).map(load, tf.data.AUTOTUNE, deterministic=False)
    data = data.batch(BATCH, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return lambda _: channels_first(data.as_numpy_iterator())


def spdl_map(work: str, folder: Path) -> Callable[[int], Batches]:
    """SPDL's pipeline with the project's compiled crops over one mapped file."""
    from alexnet.recipes import PAPER
    from alexnet.shards.codec import decode_into
    from alexnet.training.augment import crop_piece, mean_rows, pca_axes, sample_augment_params

    files = sorted((folder / "files").iterdir())

    def convert(path: Path) -> None:
        pixels = np.memmap(path, np.uint8, "w+", shape=(len(files), 256, 256, 3))
        for image, file in zip(pixels, files, strict=True):
            decode_into(np.frombuffer(file.read_bytes(), np.uint8), image)
        pixels.flush()

    path = converted(folder / "raw.bin", convert)
    images = np.memmap(path, np.uint8, "r", shape=(len(files), 256, 256, 3))
    first_address = images.ctypes.data
    axes, mean = pca_axes(PAPER, COVARIANCE), mean_rows(torch.full((3, 224, 224), MEAN))

    def epoch(number: int) -> Batches:
        order = np.random.default_rng(number).permutation(len(files))

        def load(first: int) -> Any:
            rows = order[first : first + BATCH]
            params = sample_augment_params(
                PAPER, axes, len(rows), seed=0, epoch=number, offset=first, colour_noise=True
            )
            crops = np.empty((len(rows), 224, 224, 3), np.float32)
            addresses = first_address + images[0].nbytes * rows
            crop_piece(addresses, params, mean, 1.0, crops)
            return crops, rows

        return spdl_batches(range(0, len(files), BATCH), load)

    return epoch


def dali(work: str, folder: Path) -> Callable[[int], Batches]:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    paths = [str(path) for path in sorted((folder / "files").iterdir())]

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)  # type: ignore[untyped-decorator]
    def crops() -> Any:
        data, labels = fn.readers.file(
            files=paths, labels=list(range(len(paths))), shuffle_after_epoch=True, name="files"
        )
        images = fn.decoders.image(data, output_type=types.RGB)
        images = fn.crop_mirror_normalize(
            images,
            crop=(224, 224),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            mean=[MEAN] * 3,
            std=[1.0] * 3,
            output_layout="HWC",
        )
        return images, labels

    loader = DALIGenericIterator(
        crops(),
        ["images", "labels"],
        reader_name="files",
        last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )

    def epoch(_: int) -> Batches:
        for (batch,) in loader:
            yield batch["images"].permute(0, 3, 1, 2), batch["labels"]

    return epoch


def ray_data(work: str, folder: Path) -> Callable[[int], Batches]:
    from peer_ray_ingest import crops_of

    data = crops_of(f"{folder}/jpeg")

    def epoch(_: int) -> Batches:
        for batch in data.iter_torch_batches(batch_size=BATCH):
            yield batch["image"], batch["label"]

    return epoch


PEERS = {
    "project": project,
    "ffcv": ffcv,
    "data_loader": data_loader,
    "webdataset": webdataset,
    "litdata": litdata,
    "streaming": streaming,
    "spdl": spdl,
    "grain": grain,
    "tf_data": tf_data,
    "dali": dali,
    "ray_data": ray_data,
    "spdl_map": spdl_map,
}
MODULES = {
    "project": "alexnet",
    "data_loader": "torchvision",
    "tf_data": "tensorflow",
    "dali": "nvidia.dali",
    "ray_data": "ray.data",
    "spdl_map": "spdl.pipeline",
    "spdl": "spdl.io",
}
"""The package that a peer needs, if its name differs."""


def processes() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def cpu_seconds() -> float:
    """Of this process and its workers, also of those that have ended."""
    return sum(sum(process.cpu_times()[:4]) for process in processes())


def anonymous_mb() -> float:
    """Of this process and its workers; mapped files, which the system can drop, are not counted."""
    kilobytes = 0
    for process in processes():
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        kilobytes += sum(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    return kilobytes / 1000


def measure(epoch: Callable[[int], Batches], images: int, epochs: int) -> dict[str, Any]:
    """Check one epoch, then the mean rates of some."""
    seen, total, values = [], 0.0, 0
    for pixels, labels in epoch(0):
        seen += np.asarray(labels).reshape(-1).tolist()
        # Image by image: freed blocks of a whole batch would be kept, and count as memory.
        total += sum(float(image.sum(dtype=torch.float64)) for image in pixels)
        values += pixels.numel()
        del pixels  # Else loaders that use the memory of batches again would need one more.
    if sorted(seen) != list(range(images)):
        raise SystemExit(f"{len(seen)} images, {len(set(seen))} different ones, not {images}")
    whole, steady, cpu, anonymous = [], [], [], 0.0
    for number in range(1, epochs + 1):
        used, started, done, early = cpu_seconds(), time.monotonic(), 0, 0
        for pixels, _labels in epoch(number):  # "enumerate" would keep the batch before.
            done += len(pixels)
            del pixels
            if done == BATCHES_BEFORE_STEADY * BATCH:
                early, early_end = done, time.monotonic()
            if done % (16 * BATCH) == 8 * BATCH:
                anonymous = max(anonymous, anonymous_mb())
        ended = time.monotonic()
        whole.append(done / (ended - started))
        steady.append((done - early) / (ended - early_end))
        cpu.append(1000 * (cpu_seconds() - used) / done)
    mean = total / values
    return {
        "whole": float(np.mean(whole)),
        "steady": float(np.mean(steady)),
        "cpu_seconds_per_1000": float(np.mean(cpu)),
        "anonymous_mb": anonymous,
        "mean": mean + (MEAN if mean < 60 else 0),
    }


def installed(peer: str, python: str) -> bool:
    """Whether the peer's package can be imported."""
    command = [python, "-c", f"import {MODULES.get(peer, peer)}"]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def main(peer: str, work: str, folder: Path, epochs: int) -> None:
    torch.set_num_threads(WORKERS)
    images = len(list((folder / "files").iterdir()))
    print(json.dumps(measure(PEERS[peer](work, folder), images, epochs)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
