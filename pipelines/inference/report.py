"""What ``batch_inference`` reports: the manifest, the HTML page, the MLflow run."""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alexnet import storage
from alexnet.inference.listing import read_items
from alexnet.inference.output import (
    BINS,
    MANIFEST,
    PartResult,
    predictions_name,
    thumbnails_name,
)
from alexnet.inference.page import PageRow, write_pages
from alexnet.inference.reading import decode_content, read_contents, read_now
from alexnet.plots import figures, predictions
from alexnet.shards.decode import Decoded
from pipelines.inference.origin import Origin
from pipelines.results.decorations import Decorations
from pipelines.tracking.run import Run

FORMAT = 1
"""Version of the manifest."""
TILES = 36
"""Images in the contact sheet."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of all parts."""

    images: int
    rejected: int
    reasons: dict[str, int]
    labels: dict[str, int]
    """Files by the number of their best label."""
    confidences: list[int]


def add_up(results: Sequence[PartResult]) -> Totals:
    """The sums over all parts."""
    reasons, labels = Counter[str](), Counter[str]()
    for result in results:
        reasons.update(result.reasons)
        labels.update(result.labels)
    return Totals(
        sum(result.rows for result in results),
        sum(result.rejected for result in results),
        dict(sorted(reasons.items())),
        dict(sorted(labels.items(), key=lambda pair: int(pair[0]))),
        [sum(result.confidences[i] for result in results) for i in range(BINS)],
    )


def write_manifest(
    output: str, origin: Origin, results: Sequence[PartResult], totals: Totals
) -> None:
    """Write ``manifest.json``; with it the output is complete."""
    value = {
        "format": FORMAT,
        **asdict(origin),
        "counts": {
            "images": totals.images,
            "rejected": totals.rejected,
            "reasons": totals.reasons,
        },
        "parts": [
            {
                "file": name,
                "rows": result.rows,
                "rejected": result.rejected,
                **asdict(result.files[name]),
            }
            for result in results
            for name in [predictions_name(result.number)]
        ],
    }
    storage.write_json(storage.join(output, MANIFEST), value)


def write_page(output: str, results: Sequence[PartResult], origin: Origin) -> str:
    """Write the HTML page; returns its path."""
    models = ", ".join(model.version or model.uri for model in origin.models)
    total = sum(result.rows for result in results)
    title = f"{total:,} images, labelled by {models}"
    return write_pages(output, _page_rows(output, results), total, title)


def _page_rows(output: str, results: Sequence[PartResult]) -> Iterator[PageRow]:
    columns = ["path", "reason", "names", "probabilities"]
    for result in results:
        rows = _read(output, predictions_name(result.number), columns).to_pylist()
        thumbnails = _read(output, thumbnails_name(result.number), ["jpeg"])["jpeg"].to_pylist()
        for row, jpeg in zip(rows, thumbnails, strict=True):
            yield PageRow(**row, thumbnail=jpeg)


def _read(output: str, name: str, columns: list[str]) -> pa.Table:
    with storage.open_input(storage.join(output, name)) as file:
        return pq.read_table(file, columns=columns)


def decorations(
    run: Run,
    output: str,
    origin: Origin,
    results: Sequence[PartResult],
    totals: Totals,
    names: Sequence[str],
) -> Decorations:
    """What is logged about an output: where it is, figures, rejects by reason."""
    return {
        "the description": lambda: run.set_description(
            f"{totals.images:,} files, {totals.rejected:,} rejected; predictions in "
            f"<code>{html.escape(output)}</code>"
        ),
        "labels.png": lambda: run.log_figure(
            predictions.predicted_labels(_counts_by_name(totals, names)), "labels.png"
        ),
        "confidences.png": lambda: run.log_figure(
            predictions.confidences(totals.confidences), "confidences.png"
        ),
        "rejects_by_reason.json": lambda: run.log_table(
            _reason_table(totals), "rejects_by_reason.json"
        ),
        "images.png": lambda: run.log_figure(
            _contact_sheet(output, results, upright=origin.settings["exif_orientation"] == "apply"),
            "images.png",
        ),
    }


def _counts_by_name(totals: Totals, names: Sequence[str]) -> Counter[str]:
    by_name = Counter[str]()
    for label, count in totals.labels.items():
        by_name[names[int(label)]] += count
    return by_name


def _reason_table(totals: Totals) -> pa.Table:
    reasons = pa.table(
        {"reason": list(totals.reasons), "files": list(totals.reasons.values())},
        schema=pa.schema([("reason", pa.string()), ("files", pa.int64())]),
    )
    return reasons.sort_by([("files", "descending")])


def _contact_sheet(output: str, results: Sequence[PartResult], *, upright: bool) -> Any:
    """Some images of all parts with their best labels; what can't be read now is left out."""
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    chosen = results[:: max(1, len(results) // TILES)][:TILES]
    share = -(-TILES // max(1, len(chosen)))
    for result in chosen:
        if len(images) >= TILES:
            break
        rows = _read(output, predictions_name(result.number), ["names", "status"]).to_pylist()
        items, _ = read_items(output, result.number)
        picked = [i for i, row in enumerate(rows) if row["status"] == "ok"]
        picked = picked[:: max(1, len(picked) // share)][:share]
        chosen_items = [items[i] for i in picked]
        with ThreadPoolExecutor(1) as threads:
            contents = read_contents(chosen_items, read_now, threads)
        for index, item, content in zip(picked, chosen_items, contents, strict=True):
            decoded = decode_content(item, content, upright=upright).decoded
            if isinstance(decoded, Decoded):
                images.append(decoded.pixels)
                captions.append((rows[index]["names"] or ["no label"])[0])
    return figures.contact_sheet(
        np.array(images[:TILES]), captions[:TILES], "Some images and their best labels"
    )
