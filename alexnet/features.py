"""The features of all validation images: a Parquet file beside the file of their predictions.

Features are the activations of a layer for the centre view, as the next layer reads them. By
the Euclidean distance of those of fc7 the paper shows which images are alike (section 6.1).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from alexnet import storage

FIELD = pa.field("features", pa.list_(pa.float32()))
SCHEMA = pa.schema([("key", pa.string()), ("label", pa.int32()), FIELD])
"""One row for each image, in the order in which they were predicted."""


def beside(predictions: str) -> str:
    """The path of the features, for that of the predictions."""
    return f"{predictions.rpartition('/')[0]}/features.parquet"


@contextmanager
def features_file(path: str, *, layer: str, model: str) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables with the columns of ``SCHEMA`` to a file.

    The file gets its name when the block ends without an exception.

    Args:
        path: of the file.
        layer: whose activations they are, and
        model: the URI of their model, for the file's metadata.
    """
    described = json.dumps({"layer": layer, "model": model})
    schema = SCHEMA.with_metadata({b"alexnet.features": described.encode()})
    with storage.atomic_output(path) as file, pq.ParquetWriter(file, schema) as writer:
        yield lambda table: writer.write_table(table.select(SCHEMA.names).cast(schema))
