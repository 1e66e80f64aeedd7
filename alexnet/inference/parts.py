"""One part of the listing → one part of the output: read, decode, predict, write.

Reading, decoding and predicting overlap. What is computed together depends only on the listing and
the batch size, so a part has the same bytes whoever writes it and whatever is written at the same
time.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet import storage
from alexnet.inference import output as files
from alexnet.inference.items import ListedItem
from alexnet.inference.listing import read_items
from alexnet.inference.output import FEATURES, SCHEMA, TextFormat
from alexnet.inference.reading import (
    Content,
    Image,
    decode_content,
    read_contents,
    read_if_small,
)
from alexnet.inference.rows import Prediction, RowOptions, rows_of, summary, thumbnail
from alexnet.shards.decode import Decoded

_OBJECT_READERS = 32
"""Objects that are read at the same time."""

A = TypeVar("A")
B = TypeVar("B")


class Predict(Protocol):
    """Models as a function."""

    @property
    def parallel(self) -> bool:
        """Whether several threads may call it at the same time, as on a CPU."""

    def __call__(self, images: NDArray[np.uint8]) -> Prediction:
        """(N, 256, 256, 3) RGB → probabilities, and features if they are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOptions:
    """What is the same for all parts of an output."""

    output: str
    rows: RowOptions
    features: bool
    """Whether the predictions have features."""
    upright: bool
    """Whether images are turned as their EXIF orientation says."""
    text_format: TextFormat | None
    thumbnails: bool
    metadata: Mapping[str, str]
    """Of each Parquet file: names the model."""

    def wanted_files(self, number: int) -> list[str]:
        """The files of a part, relative to the output."""
        return files.wanted_files(number, self.text_format, thumbnails=self.thumbnails)

    def schema(self) -> pa.Schema:
        """Of the predictions."""
        schema = SCHEMA.append(FEATURES) if self.features else SCHEMA
        return schema.with_metadata(dict(self.metadata))


class _Batch(NamedTuple):
    """What was read of some items."""

    items: Sequence[ListedItem]
    contents: list[Content]


class _Decoded(NamedTuple):
    """Decoded items, and their thumbnails if these are wanted."""

    items: Sequence[ListedItem]
    images: list[Image]
    thumbnails: list[bytes]


class PartWriter:
    """Writes parts; several threads can write one each, and share the threads for decoding."""

    def __init__(
        self, options: PartOptions, load: Callable[[], Predict], batch_size: int, threads: int
    ) -> None:
        """Prepare; nothing is loaded.

        Args:
            options: of the output.
            load: the models; called once, when the first part needs them.
            batch_size: items that are predicted together.
            threads: that decode and, if the models allow it, predict.
        """
        self._options, self._load, self._batch_size = options, load, batch_size
        self._ahead = threads + 1
        self._readers, self._objects = ThreadPoolExecutor(2), ThreadPoolExecutor(_OBJECT_READERS)
        self._workers = ThreadPoolExecutor(threads)
        self._predict: Predict | None = None
        self._loading, self._predicting = threading.Lock(), threading.Lock()

    def write(self, number: int) -> None:
        """Write those files of a part that are missing or damaged, then its result.

        Raises:
            UserError: the source or the models can't be read.
            OSError: the files can't be written.
        """
        options = self._options
        items, listing = read_items(options.output, number)
        result = files.read_result(options.output, number, listing)
        kept = result.files if result else {}
        missing = [name for name in options.wanted_files(number) if name not in kept]
        if not missing:
            return
        need_thumbnails = files.thumbnails_name(number) in missing
        thumbnails: list[bytes] = []
        if result is None:
            rows = []
            for batch, predicted in self._predicted(items):
                paths = [item.path for item in batch.items]
                rows += rows_of(paths, batch.images, predicted, options.rows)
                thumbnails += batch.thumbnails
            table = pa.Table.from_pylist(rows, schema=options.schema())
            result = summary(table, number, listing)
        else:
            path = storage.join(options.output, files.predictions_name(number))
            with storage.open_input(path) as file:
                table = pq.read_table(file)
            if need_thumbnails:
                decoded = ahead(self._workers, self._decode, self._read(items), self._ahead)
                thumbnails = [jpeg for batch in decoded for jpeg in batch.thumbnails]
        for name in missing:
            data = _file_content(name, table, thumbnails)
            result.files[name] = files.write_file(options.output, name, data)
        files.write_result(options.output, result)

    def _read(self, items: Sequence[ListedItem]) -> Iterator[_Batch]:
        """The items in batches, read; the next batches are read in the meantime."""

        def read(start: int) -> _Batch:
            batch = items[start : start + self._batch_size]
            return _Batch(batch, read_contents(batch, read_if_small, self._objects))

        return ahead(self._readers, read, range(0, len(items), self._batch_size), self._ahead)

    def _decode(self, batch: _Batch) -> _Decoded:
        upright, wanted = self._options.upright, self._options.thumbnails
        images = [
            decode_content(item, content, upright=upright)
            for item, content in zip(*batch, strict=True)
        ]
        thumbnails = [thumbnail(image.decoded) for image in images] if wanted else []
        return _Decoded(batch.items, images, thumbnails)

    def _predicted(
        self, items: Sequence[ListedItem]
    ) -> Iterator[tuple[_Decoded, Prediction | None]]:
        """Each batch and what is predicted for its decoded images."""
        predict = self._loaded()

        def predict_batch(batch: _Decoded) -> tuple[_Decoded, Prediction | None]:
            pixels = [i.decoded.pixels for i in batch.images if isinstance(i.decoded, Decoded)]
            predicted = predict(np.stack(pixels)) if pixels else None
            return batch, predicted

        if predict.parallel:
            batches = self._read(items)
            yield from ahead(
                self._workers, lambda b: predict_batch(self._decode(b)), batches, self._ahead
            )
            return
        for batch in ahead(self._workers, self._decode, self._read(items), self._ahead):
            with self._predicting:
                done = predict_batch(batch)
            yield done

    def _loaded(self) -> Predict:
        with self._loading:
            if self._predict is None:
                self._predict = self._load()
            return self._predict


def ahead(
    threads: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], count: int
) -> Iterator[B]:
    """The function's values for some items, in order; at most ``count`` are computed ahead."""
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _file_content(name: str, table: pa.Table, thumbnails: list[bytes]) -> bytes:
    text_format = files.text_format_of(name)
    if text_format:
        return files.as_text(table, text_format)
    if name.startswith(files.THUMBNAILS):
        table = pa.table({"jpeg": pa.array(thumbnails, pa.binary())})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return buffer.getvalue().to_pybytes()  # type: ignore[no-any-return]
