"""Time and memory of planning all of ILSVRC2012: an index of 1,281,167 + 50,000 generated rows.

python tests/benchmarks/plan.py
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from alexnet.shards.codec import Encoding
from alexnet.shards.plan import plan_digest, plan_path, read_plan, write_plan
from alexnet.sources.account import Account
from alexnet.sources.index import SCHEMA, Part, merge, source_fingerprint
from alexnet.sources.labels import Label
from alexnet.sources.read import Source
from alexnet.storage import File

CLASSES = 1000
TRAIN, VAL = 1_281_167, 50_000


def generated_parts(labels: list[Label]) -> list[Part]:
    """Index rows as those of archives: one part for each class, and one for validation."""
    random = np.random.default_rng(0)
    names = ("key", "label", "path", "offset", "size")
    schema = pa.schema([SCHEMA.field(name) for name in names])

    def part(keys: list[str], classes: list[int], path: str) -> Part:
        sizes = random.integers(20_000, 200_000, len(keys))
        columns = [keys, classes, [path] * len(keys), np.cumsum(sizes) - sizes, sizes]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        return Part(pa.table(arrays, schema=schema), b"")

    parts = []
    for number, label in enumerate(labels):
        count = TRAIN // CLASSES + (number < TRAIN % CLASSES)
        keys = [f"train/{label.wnid}/{label.wnid}_{image}.JPEG" for image in range(count)]
        parts.append(part(keys, [number] * count, "/data/ILSVRC2012_img_train.tar"))
    keys = [f"val/ILSVRC2012_val_{image + 1:08d}.JPEG" for image in range(VAL)]
    parts.append(part(keys, random.integers(0, CLASSES, VAL).tolist(), "/data/val.tar"))
    return parts


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    labels = [
        Label(f"n{1440764 + 13 * number:08d}", f"class {number}") for number in range(CLASSES)
    ]
    parts = generated_parts(labels)
    seconds: dict[str, float] = {}
    started = time.monotonic()

    def record(name: str) -> None:
        """Store the time since the last call."""
        nonlocal started
        seconds[name] = round(time.monotonic() - started, 2)
        started = time.monotonic()

    index = merge(parts, labels)
    record("merge")
    source = Source(
        layout="archives",
        index=index,
        labels=tuple(labels),
        source_fingerprint=source_fingerprint(parts, [File("/data/devkit", 1, 1)]),
        account=Account(images=len(index)),
    )
    del parts
    record("fingerprint")
    plan_digest(source, {"seed": 0})
    record("digest")
    with tempfile.TemporaryDirectory() as folder:
        encoding = Encoding(kind="jpeg", jpeg_quality=95)
        tasks = write_plan(folder, source, encoding, 1024, 0)
        record("write_plan")
        size = Path(plan_path(folder)).stat().st_size
        read_plan(tasks[-1])
        record("read_one_task")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "rows": TRAIN + VAL,
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "plan_bytes": size,
        "tasks": len(tasks),
        "peak_gb": round(peak / 1e9, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
