"""What each Ray Train worker does: learn, report, checkpoint.

The workers agree on when to report because it depends on the step alone, or on what rank 0's
clock says, which it shares with them at every point of the curves.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from alexnet.errors import UserError
from alexnet.metrics import Errors
from alexnet.training.checkpoint import Snapshot, snapshot
from alexnet.training.loop import Step, total, train_epoch, validate
from alexnet.training.optimizer import apply_warmup, rates_at, set_rates
from pipelines.console.progress import duration
from pipelines.training import checkpointing
from pipelines.training.state import (
    WorkerState,
    all_reduce_errors,
    any_rank,
    build_worker,
    can_scale_up,
)

FLUSH_SECONDS = 5
"""For the last points of the curves."""
WINDOW_CURVES = ("learning_rate", "images_per_second")
"""What the curves have of an epoch's last step already."""


def train_loop_per_worker(config: Mapping[str, Any]) -> None:
    """The Ray Train loop.

    ``config``: settings, shards, tracking_uri, run_id, threads, gpus, board.
    """
    torch.set_num_threads(config["threads"])
    job = build_worker(config)
    if job.writer and (step := job.position.step):
        job.say(f"going on from the checkpoint of step {step} in epoch {job.position.epoch + 1}")
    if job.writer and job.reader.world > 1:
        job.say(f"{job.reader.world} workers share each batch")
    while job.position.epoch < job.recipe.epochs and not job.restart_for_resize:
        _run_epoch(job)
    if job.writer:
        # What takes longer is in the last checkpoint, and the driver writes it.
        job.writer.flush(FLUSH_SECONDS)
        if lost := job.writer.lost:
            job.say(f"{lost} points of the curves are lost: the queue was full, or MLflow refused")


def _run_epoch(job: WorkerState) -> None:
    """Learn from the rest of the present epoch, validate, report."""
    settings, position = job.settings, job.position
    past = [record["val_top1_error"] for record in position.history]
    rates = rates_at(job.recipe.schedule, job.recipe.learning_rate, position.epoch, past)
    set_rates(job.optimizer, rates)
    begun, images_before = time.monotonic(), position.offset
    window: list[Step] = []
    window_begun = begun
    rows = job.manifest.rows("train")
    steps = train_epoch(
        job.wrapped,
        job.optimizer,
        job.reader,
        job.setup,
        rates,
        epoch=position.epoch,
        offset=position.offset,
    )
    for step in steps:
        window.append(step)
        position.step += 1
        if job.average:
            job.average.update(job.network, position.step)
        position.offset = step.offset
        last = step.offset == rows
        due = position.step % settings.checkpoint_steps == 0
        if position.step % settings.log_steps == 0 or last or due:
            speed = sum(s.rows for s in window) / (time.monotonic() - window_begun)
            seen = position.epoch * rows + position.offset
            rate = apply_warmup(rates, seen, job.setup.warmup_rows).learning_rate
            _log_window(job, total(window), speed, rate, position.step)
            late = time.monotonic() - job.reported > 60 * settings.checkpoint_minutes
            due = due or any_rank(late and job.reader.rank == 0)
            window, window_begun = [], time.monotonic()
        if due and not last:
            _report(job)
            if job.restart_for_resize:
                steps.close()
                return
            window_begun = time.monotonic()
    speed = (rows - images_before) / (time.monotonic() - begun)
    learned = all_reduce_errors(position.epoch_errors)
    with job.average.in_place(job.network) if job.average else nullcontext():
        checked = all_reduce_errors(
            validate(
                job.network, job.manifest, job.setup, rank=job.reader.rank, world=job.reader.world
            )
        )
    record = {
        "epoch": float(position.epoch + 1),
        "train_loss": learned.mean_loss,
        "train_top1_error": learned.top1_error,
        "val_loss": checked.mean_loss,
        "val_top1_error": checked.top1_error,
        "val_top5_error": checked.top5_error,
        "learning_rate": rates.learning_rate,
        "images_per_second": speed,
    }
    position.history.append(record)
    position.epoch, position.offset, position.epoch_errors = position.epoch + 1, 0, Errors()
    if job.writer:
        job.writer.write({k: v for k, v in record.items() if k not in WINDOW_CURVES}, position.step)
        job.say(
            f"epoch {position.epoch}/{job.recipe.epochs} done, validation error "
            f"{checked.top1_error:.1f} % top-1, {checked.top5_error:.1f} % top-5 (centre view), "
            f"training loss {learned.mean_loss:.3f}"
        )
    _report(job)


def _log_window(
    job: WorkerState, mine: Errors, images_per_second: float, learning_rate: float, step: int
) -> None:
    """One point of the training curves, the mean since the last one, over all workers."""
    position, recipe = job.position, job.recipe
    position.epoch_errors.add(mine)
    seen = all_reduce_errors(mine)
    if not np.isfinite(seen.loss):
        raise UserError(
            f"the training loss is {seen.loss} in epoch {position.epoch + 1}, step {step}: the "
            "network diverged; give a lower --learning-rate than "
            f"{recipe.learning_rate} or another --recipe"
        )
    if not job.writer:
        return
    point = {
        "loss": seen.mean_loss,
        "top1_error": seen.top1_error,
        "learning_rate": learning_rate,
        "images_per_second": images_per_second,
    }
    job.writer.write(point, step)
    rows = job.manifest.rows("train")
    left = (recipe.epochs - position.epoch) * rows - position.offset
    job.say(
        f"epoch {position.epoch + 1}/{recipe.epochs}, {position.offset:,}/{rows:,} images, "
        f"loss {seen.mean_loss:.3f}, {images_per_second:,.0f} images/s, "
        f"{duration(left / images_per_second)} left"
    )


def _report(job: WorkerState) -> None:
    """Begin a checkpoint; rank 0 brings it. Then find out whether more workers could go on."""
    position = job.position
    whole = replace(
        position,
        epoch_errors=all_reduce_errors(position.epoch_errors),
        pending_metrics=job.writer.pending() if job.writer else [],
    )
    job.reported = time.monotonic()

    def take() -> Snapshot:
        return snapshot(
            job.network,
            job.optimizer,
            whole,
            job.setup.means[0],
            job.average.weights if job.average else None,
        )

    checkpointing.report(job.idle, take if job.reader.rank == 0 else None, whole)
    job.restart_for_resize = position.epoch < job.recipe.epochs and can_scale_up(job)
    if job.restart_for_resize and job.writer:
        job.say("there is room for more workers; going on with them")
