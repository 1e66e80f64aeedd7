"""Submission files of ILSVRC2012: written from predictions, and scored against a development kit.

    python -m alexnet.submission write PREDICTIONS.parquet DEVKIT.tar.gz OUTPUT.txt
    python -m alexnet.submission score SUBMISSION.txt DEVKIT.tar.gz

A file has one line for each validation image, in the order of the images' file names. A line has
five ``ILSVRC2012_ID``, best first, with spaces between them. These IDs are the development kit's;
class indices of this package are in the order of the WordNet IDs instead.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence

import numpy as np

from alexnet import storage
from alexnet.errors import UserError, one_line
from alexnet.metrics import TOP_K, ErrorCounts, count_errors, has_top5
from alexnet.predictions import Predictions, read
from alexnet.significance import wilson_interval
from alexnet.sources.labels import Devkit, read_devkit

_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\b")


def lines(predicted: Predictions, devkit: Devkit) -> list[str]:
    """The lines of a submission file.

    Raises:
        UserError: there are fewer than five classes or other classes than the kit's, or the images
            are not all those of the kit.
    """
    if len(predicted.wnids) < TOP_K:
        raise UserError(
            f"a submission has {TOP_K} classes for each image, and these predictions know "
            f"{len(predicted.wnids)}; evaluate a model of more classes"
        )
    if predicted.wnids != tuple(label.wnid for label in devkit.labels):
        raise UserError(
            f"the predictions are of {len(predicted.wnids)} classes that are not the "
            f"{len(devkit.labels)} of the development kit; evaluate a model of those"
        )
    number_of = {}
    for row, key in enumerate(predicted.keys):
        match = _IMAGE.search(key.rpartition("/")[2])
        if match is None:
            raise UserError(
                f"{key}: not named like a validation image of ILSVRC2012 (ILSVRC2012_val_00000001)"
                "; a submission can only be written for those"
            )
        number_of[int(match[1])] = row
    images = len(devkit.validation)
    missing = [number for number in range(1, images + 1) if number not in number_of]
    if missing or len(predicted.keys) != images:
        raise UserError(
            f"predictions of {len(predicted.keys):,} images, and the development kit has {images:,}"
            + (f"; ILSVRC2012_val_{missing[0]:08} has none" if missing else "")
            + "; evaluate on all its validation images"
        )
    ids = np.array(devkit.ids)
    return [" ".join(map(str, ids[predicted.best[number_of[n]]])) for n in sorted(number_of)]


def score(path: str, devkit: Devkit) -> ErrorCounts:
    """Count the errors of a submission file.

    Raises:
        UserError: the file can't be read, has another number of lines than the kit has images, or
            a line has not five IDs of classes.
    """
    try:
        rows = storage.read_bytes(path).decode("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as text ({one_line(error)})") from error
    images = len(devkit.validation)
    if len(rows) != images:
        raise UserError(
            f"{path}: has {len(rows):,} lines, and the development kit {images:,} validation "
            "images; write one line for each"
        )
    index_of = {str(number): index for index, number in enumerate(devkit.ids)}
    best = np.empty((images, TOP_K), np.int64)
    for number, row in enumerate(rows, start=1):
        words = row.split()
        if len(words) != TOP_K:
            raise UserError(f"{path}: line {number} has {len(words)} IDs; write {TOP_K}")
        unknown = [word for word in words if word not in index_of]
        if unknown:
            raise UserError(
                f"{path}: line {number} has {unknown[0][:40]!r}, which is not the ILSVRC2012_ID of "
                f"a class; IDs are {min(devkit.ids)} to {max(devkit.ids)}"
            )
        best[number - 1] = [index_of[word] for word in words]
    return count_errors(best, np.array(devkit.validation))


def _to_json(counts: ErrorCounts, devkit: Devkit) -> dict[str, float | None]:
    low, high = wilson_interval(counts.top1_wrong, counts.images)
    values: dict[str, float | None] = {
        "images": counts.images,
        "top1_error": round(counts.top1_error, 3),
        "top1_error_low": round(100 * low, 3),
        "top1_error_high": round(100 * high, 3),
    }
    if not has_top5(len(devkit.labels)):
        return values | {"top5_error": None}
    low, high = wilson_interval(counts.top5_wrong, counts.images)
    return values | {
        "top5_error": round(counts.top5_error, 3),
        "top5_error_low": round(100 * low, 3),
        "top5_error_high": round(100 * high, 3),
    }


def main(arguments: Sequence[str]) -> None:
    """The command: exit status 0, or 2 with one line that explains the error."""
    parser = argparse.ArgumentParser(
        prog="python -m alexnet.submission",
        description="Write or score a submission file of ILSVRC2012.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("write", help="predictions of an evaluation to a submission file")
    writer.add_argument("predictions", help="predictions.parquet of an evaluation")
    writer.add_argument("devkit", help="ILSVRC2012_devkit_t12.tar.gz")
    writer.add_argument("output", help="file to write; an existing one is replaced")
    scorer = commands.add_parser("score", help="errors of a submission file, as one JSON object")
    scorer.add_argument("submission", help="file to score")
    scorer.add_argument("devkit", help="ILSVRC2012_devkit_t12.tar.gz")
    options = parser.parse_args(arguments)
    try:
        devkit = read_devkit(options.devkit)
        if options.command == "write":
            text = "".join(f"{line}\n" for line in lines(read(options.predictions), devkit))
            try:
                storage.write_bytes(storage.absolute(options.output), text.encode())
            except OSError as error:
                raise UserError(
                    f"{options.output}: can't be written ({one_line(error)})"
                ) from error
            result: dict[str, float | str | None] = {
                "images": len(devkit.validation),
                "submission": options.output,
            }
        else:
            result = {**_to_json(score(options.submission, devkit), devkit)}
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
