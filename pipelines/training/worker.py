"""The Ray Train loop: train, report metrics, save checkpoints.

All workers report at the same steps: these depend on the step's number, or on rank 0's clock, which
is shared with all workers whenever metrics are logged.
"""

import gc
import math
import time
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from alexnet.diagnostics.layers import gradient_norms
from alexnet.errors import UserError
from alexnet.metrics import LossAndErrors, has_top5
from alexnet.training.checkpoint import Snapshot, take_snapshot
from alexnet.training.device_queue import DeviceTime
from alexnet.training.loop import train_epoch
from alexnet.training.optimizer import EpochRates, apply_warmup, rates_at, set_rates
from alexnet.training.validation import validate
from pipelines.console.progress import Update, duration
from pipelines.training import checkpointing
from pipelines.training.cadence import next_point
from pipelines.training.collectives import all_reduce_errors
from pipelines.training.state import LoopConfig, WorkerState, build_worker, open_node_metrics
from pipelines.training.window import Window

FLUSH_TIMEOUT_S = 5
"""For the last metrics. The driver writes those that the last checkpoint has as pending."""

STEP_METRICS = ("learning_rate", "images_per_second")
"""Metrics of an epoch that are logged at its last step already, with the step's own."""


def train_loop_per_worker(config: Mapping[str, LoopConfig]) -> None:
    """Train until the last epoch is done.

    Args:
        config: ``loop``: the settings and everything else that the driver hands over.
    """
    loop = config["loop"]
    torch.set_num_threads(loop.cpus)
    worker = build_worker(loop)
    state = worker.train_state
    if state.step:
        worker.log_line(
            f"resuming from the checkpoint of step {state.step}, epoch {state.epoch + 1}"
        )
    worker.log_line(_started_line(worker))
    # The modules' objects live as long as the process; without this, searching them for garbage
    # takes a twentieth of the loader's time.
    gc.freeze()
    with open_node_metrics(loop):
        while state.epoch < worker.recipe.epochs:
            _run_epoch(worker)
    if worker.pictures:
        worker.pictures.finish()
    if worker.writer:
        worker.writer.flush(FLUSH_TIMEOUT_S)
        if dropped := worker.writer.dropped:
            worker.log_line(
                f"{dropped} metrics are lost: the queue was full, or MLflow refused them"
            )


def _started_line(worker: WorkerState) -> str:
    devices = " and ".join(dict.fromkeys(str(mean.device) for mean in worker.context.means))
    count = worker.loader.world_size
    shared = f"{count} workers share each batch" if count > 1 else "1 worker"
    return f"{shared}, on {devices}, {torch.get_num_threads()} threads"


def _run_epoch(worker: WorkerState) -> None:
    """Train on the rest of the epoch, validate, save a checkpoint."""
    state = worker.train_state
    errors = [record["val_top1_error"] for record in state.history]
    rates = rates_at(worker.recipe.schedule, worker.recipe.learning_rate, state.epoch, errors)
    set_rates(worker.optimizer, rates)
    started, first_row = time.monotonic(), state.offset
    _train_rest_of_epoch(worker, rates)
    rows = state.offset - first_row
    _finish_epoch(worker, rates, rows / (time.monotonic() - started))
    _save_checkpoint(worker)


def _train_rest_of_epoch(worker: WorkerState, rates: EpochRates) -> None:
    """Train from the present offset to the end of the epoch.

    A window's sums are read when the next window has ended, so that a GPU always has work. Before
    a checkpoint and at the end of the epoch all are read.
    """
    settings, state = worker.settings, worker.train_state
    rows = worker.manifest.rows("train")
    device = worker.context.means[0].device
    unread_windows = 0 if device.type == "cpu" else 1
    due = _next_point(worker, seconds_per_step=0)
    window = Window(DeviceTime(device))
    ended: deque[Window] = deque()
    steps = train_epoch(
        worker.wrapped,
        worker.optimizer,
        worker.loader,
        worker.context,
        rates,
        epoch=state.epoch,
        offset=state.offset,
    )
    for step in steps:
        window.sums.add(step)
        state.step += 1
        state.offset = step.offset
        if worker.average:
            worker.average.update(worker.network, state.step)
        last = step.offset == rows
        checkpoint_due = bool(
            settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0
        )
        if state.step < due and not last and not checkpoint_due:
            continue
        now = DeviceTime(device)
        window.sums.start_copy()
        window.ended, window.step, window.offset = now, state.step, state.offset
        ended.append(window)
        seconds_per_step = 0.0
        while len(ended) > (0 if last or checkpoint_due else unread_windows):
            agreed = _log_window(worker, ended.popleft(), rates)
            checkpoint_due = checkpoint_due or agreed.checkpoint_due
            seconds_per_step = agreed.seconds_per_step
        due = _next_point(worker, seconds_per_step)
        if checkpoint_due and not last:
            _save_checkpoint(worker)
            now = DeviceTime(device)
        window = Window(now)


def _next_point(worker: WorkerState, seconds_per_step: float) -> int:
    settings = worker.settings
    return next_point(
        worker.train_state.step,
        log_steps=settings.log_steps,
        log_seconds=settings.log_seconds,
        seconds_per_step=seconds_per_step,
    )


class _Agreed(NamedTuple):
    """What all workers know at a point of the curves, by rank 0's clock."""

    seconds_per_step: float
    checkpoint_due: bool
    """Because enough time has passed, or because the driver has requested a checkpoint."""


def _log_window(worker: WorkerState, window: Window, rates: EpochRates) -> _Agreed:
    """Log the mean metrics of a window's steps, over all workers."""
    state, recipe, sums = worker.train_state, worker.recipe, window.sums
    local = sums.read()
    state.epoch_errors.add(local)
    seconds_per_step = late = 0.0
    if worker.loader.rank == 0:
        elapsed = time.monotonic() - worker.checkpoint_started
        too_long = elapsed > 60 * worker.settings.checkpoint_minutes
        late = float(too_long or worker.checkpoint_requested())
        seconds_per_step = window.seconds() / sums.steps
    errors, (seconds_per_step, late) = all_reduce_errors(local, seconds_per_step, late)
    agreed = _Agreed(seconds_per_step, bool(late))
    _check_finite(worker, "training", errors.loss, window.step)
    if not worker.writer:
        return agreed
    rows = worker.manifest.rows("train")
    rows_seen = state.epoch * rows + window.offset
    images_per_second = sums.rows / (seconds_per_step * sums.steps)
    worker.writer.write(
        {
            "loss": errors.mean_loss,
            "top1_error": errors.top1_error,
            "learning_rate": apply_warmup(
                rates, rows_seen, worker.context.warmup_rows
            ).learning_rate,
            "images_per_second": images_per_second,
        },
        window.step,
    )
    remaining = recipe.epochs * rows - rows_seen
    epoch = f"epoch {state.epoch + 1}/{recipe.epochs}"
    loss, rate = f"loss {errors.mean_loss:.3f}", f"{images_per_second:,.0f} images/s"
    left = f"{duration(remaining / images_per_second)} left"
    now = f"{epoch} validation" if window.offset == rows else epoch
    worker.log_line(
        Update(
            f"{epoch}, {window.offset:,}/{rows:,} images, {loss}, {rate}, {left}",
            rows_seen,
            recipe.epochs * rows,
            (now, left, loss, rate),
        )
    )
    return agreed


def _check_finite(worker: WorkerState, kind: str, loss: float, step: int) -> None:
    """Raise a ``UserError`` if the network has diverged: NaN would count as a prediction."""
    if not np.isfinite(loss):
        state, recipe = worker.train_state, worker.recipe
        raise UserError(
            f"the {kind} loss is {loss} in epoch {state.epoch + 1}, step {step}: "
            "the network diverged; give a lower --learning-rate than "
            f"{recipe.learning_rate} or another --recipe"
        )


def _finish_epoch(worker: WorkerState, rates: EpochRates, images_per_second: float) -> None:
    """Validate, add the epoch to the history and log its metrics."""
    state = worker.train_state
    trained, _ = all_reduce_errors(state.epoch_errors)
    validated = _validate(worker)
    _check_finite(worker, "validation", validated.loss, state.step)
    record = {
        "epoch": float(state.epoch + 1),
        "train_loss": trained.mean_loss,
        "train_top1_error": trained.top1_error,
        "val_loss": validated.mean_loss,
        "val_top1_error": validated.top1_error,
        "learning_rate": rates.learning_rate,
        "images_per_second": images_per_second,
    }
    errors = f"{validated.top1_error:.1f} % top-1"
    if has_top5(len(worker.manifest.labels)):
        record["val_top5_error"] = validated.top5_error
        errors += f", {validated.top5_error:.1f} % top-5"
    state.history.append(record)
    state.epoch += 1
    state.offset = 0
    state.epoch_errors = LossAndErrors()
    if not worker.writer:
        return
    point = {name: value for name, value in record.items() if name not in STEP_METRICS}
    gradients = gradient_norms(worker.network)
    for layer, norms in gradients.items():
        point[f"gradient_norm/{layer}"] = math.hypot(*norms)
    worker.writer.write(point, state.step)
    if worker.pictures:
        last = state.epoch == worker.recipe.epochs
        worker.pictures.after_epoch(worker.network, state.step, state.history, gradients, last=last)
    worker.log_line(
        f"epoch {state.epoch}/{worker.recipe.epochs} done, validation error {errors} (centre "
        f"view), training loss {trained.mean_loss:.3f}"
    )


def _validate(worker: WorkerState) -> LossAndErrors:
    """The centre view's errors of the weights, or of their average if there is one."""
    average = worker.average
    with average.swapped(worker.network) if average else nullcontext():
        local = validate(worker.network, worker.loader, worker.context)
    errors, _ = all_reduce_errors(local)
    return errors


def _save_checkpoint(worker: WorkerState) -> None:
    """Start a checkpoint, which rank 0 writes."""
    state = worker.train_state
    epoch_errors, _ = all_reduce_errors(state.epoch_errors)
    global_state = replace(
        state,
        epoch_errors=epoch_errors,
        pending_metrics=worker.writer.pending() if worker.writer else [],
    )
    worker.checkpoint_started = time.monotonic()

    def snapshot() -> Snapshot:
        return take_snapshot(
            worker.network,
            worker.optimizer,
            global_state,
            worker.context.means[0],
            worker.average.weights if worker.average else None,
        )

    checkpointing.report(
        worker.checkpoint_slot, snapshot if worker.loader.rank == 0 else None, global_state
    )
