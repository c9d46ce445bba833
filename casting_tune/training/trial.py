"""One trial, from a configuration and images to rows.

Input: a configuration, a pack, a store, a context. Output: rows of epochs, then predictions, then
the one row in trials that commits them; and each Epoch to `on_epoch` after its row is written. A
failed trial is a row too. Knows no sweep files and no Ray: the scheduler calls `run_trial` in a
process of its choice.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from casting_tune.config import Epoch, Predictions, Status, TrialConfig, cell_id
from casting_tune.data.pack import Pack
from casting_tune.data.splits import Folds
from casting_tune.errors import Diverged, StoreError, TimeUp
from casting_tune.failpoints import step
from casting_tune.models import input_size
from casting_tune.store import artifacts
from casting_tune.store.attempts import attempts_since, next_attempt, read_cell
from casting_tune.store.store import Store
from casting_tune.training import memory, records
from casting_tune.training.baseline_fit import fit_baseline, is_baseline
from casting_tune.training.image_split import split_images
from casting_tune.training.network_fit import files_of, fit_network
from casting_tune.training.records import Ending, Measured, TrialContext, TrialRecord


def run_trial(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    *,
    context: TrialContext,
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
) -> dict[str, Any]:
    """Train one cell once, write its rows, and return its row of trials.

    A loss that is not finite, a limit of memory or time, or any other error ends the trial with
    that status and its message in the row: one trial never ends a sweep.

    Raises:
        StoreError: the store cannot be read or written.
        UsageError: the configuration cannot run on these images.
    """
    step("trial begins")
    started_at, started = datetime.now(UTC), time.perf_counter()
    cell = cell_id(config, pack.dataset_id)
    attempt = _next_attempt(store, cell, config, context.after)
    name, sweep = f"{cell}-{attempt}", context.sweep
    parts = split_images(config, pack, context.groups)
    description = records.describe(config, pack, parts)
    write_epoch = _epoch_writer(config, store, cell, attempt, sweep)

    def keep(epoch: Epoch) -> None:
        write_epoch(epoch)
        on_epoch(epoch)

    measured, scores = None, dict[str, Any]()
    try:
        predictions, measured = _learn(config, pack, store, context, parts=parts, on_epoch=keep)
    except StoreError:
        raise
    # any error of a network, a driver or a kernel: the row keeps it, and the sweep continues
    except Exception as error:
        ending = _failed(error, config, context)
    else:
        step("trial has predicted")
        ending, scores = Ending(status="completed"), records.score(predictions)
        rows = records.of_predictions(predictions, pack, cell, attempt)
        store.write("predictions", sweep, name, rows)
    row = TrialRecord(
        cell_id=cell,
        attempt=attempt,
        context=context,
        description=description,
        started_at=started_at,
        ending=ending,
        duration_s=time.perf_counter() - started,
        measured=measured,
        scores=scores,
    ).row()
    store.write("trials", sweep, name, [row])
    if ending.status in ("completed", "diverged"):
        step("trial is done")
        artifacts.drop(store, artifacts.checkpoint(store, cell))
    step("trial ends")
    return row


def lost(
    config: TrialConfig, pack: Pack, store: Store, *, context: TrialContext, ending: Ending
) -> dict[str, Any]:
    """Write and return the row of a trial that could not write its own.

    Its process was lost, or the scheduler stopped it.
    """
    cell = cell_id(config, pack.dataset_id)
    attempt, now = _next_attempt(store, cell, config, context.after), datetime.now(UTC)
    description = records.describe(config, pack, split_images(config, pack, context.groups))
    begun: dict[str, Any] = {"attempt": attempt, "started_at": now}
    if ending.status == "stopped":
        begun |= _until_stopped(store, cell, attempt, now, epochs=config.epochs)
    row = TrialRecord(
        cell_id=cell,
        context=context,
        description=description | {"host": None},  # it ran elsewhere
        ending=ending,
        **begun,
    ).row()
    store.write("trials", context.sweep, f"{cell}-{row['attempt']}", [row])
    return row


def halved(config: TrialConfig, n_images: int) -> int | None:
    """Return half of a number of images per forward pass; None: the network needs more."""
    half = n_images // 2
    if half == 0 or (half == 1 and input_size.fewest_images(config.backbone, config.image_px) > 1):
        return None
    return half


def _learn(
    config: TrialConfig,
    pack: Pack,
    store: Store,
    context: TrialContext,
    *,
    parts: Folds,
    on_epoch: Callable[[Epoch], None],
) -> tuple[Predictions, Measured | None]:
    """Train a network, or fit a baseline, within the trial's limits of memory."""
    files = files_of(store, cell_id(config, pack.dataset_id), keep=context.allowance.keep)
    with _limited(context):
        if is_baseline(config):
            n_threads = context.place.n_threads
            return fit_baseline(config, pack, parts=parts, n_threads=n_threads), None
        return fit_network(config, pack, context, parts=parts, files=files, on_epoch=on_epoch)


@contextlib.contextmanager
def _limited(context: TrialContext) -> Iterator[None]:
    """Limit the memory of a trial to its allowance."""
    import torch

    device, allowance = torch.device(context.place.device), context.allowance
    own = allowance.memory_bytes if device.type == "cpu" else None
    with memory.limited(own), memory.shared(device, allowance.gpu_share):
        yield


def _epoch_writer(
    config: TrialConfig, store: Store, cell: str, attempt: int, sweep: str
) -> Callable[[Epoch], None]:
    """Return a function that writes the row of an epoch, unless an earlier attempt wrote it."""
    before = range(1, attempt)
    written = read_cell(store, "epochs", cell, before, epochs=config.epochs, columns=["epoch"])
    known = set(written["epoch"].to_pylist())

    def write(epoch: Epoch) -> None:
        if epoch.epoch in known:
            return
        key = {"cell_id": cell, "attempt": attempt, "sweep": sweep}
        row = asdict(epoch) | key | {"ended_at": datetime.now(UTC)}
        store.write("epochs", sweep, f"{cell}-{attempt}-{epoch.epoch}", [row])

    return write


def _next_attempt(store: Store, cell: str, config: TrialConfig, after: int | None) -> int:
    if after is None:
        return next_attempt(store, cell)
    return attempts_since(store, cell, after, epochs=config.epochs).stop


def _until_stopped(
    store: Store, cell: str, next_attempt: int, now: datetime, *, epochs: int
) -> dict[str, Any]:
    """Return the attempt, start, duration and first epoch of a stopped trial, from its epochs."""
    before, attempt = range(1, next_attempt), next_attempt - 1
    trials = read_cell(store, "trials", cell, before, epochs=epochs, columns=["attempt"])
    columns = ["epoch", "attempt", "train_s", "validation_s"]
    rows = read_cell(store, "epochs", cell, before, epochs=epochs, columns=columns).to_pylist()
    own = [epoch for epoch in rows if epoch["attempt"] == attempt]
    if attempt in trials["attempt"].to_pylist() or not own:
        # it continued from a checkpoint and was stopped before it completed an epoch
        return {
            "resumed_from": max((epoch["epoch"] for epoch in rows), default=0),
            "duration_s": 0.0,
        }
    duration_s = sum(epoch["train_s"] + epoch["validation_s"] for epoch in own)
    return {
        "attempt": attempt,
        "started_at": now - timedelta(seconds=duration_s),
        "duration_s": duration_s,
        "resumed_from": min(epoch["epoch"] for epoch in own) - 1,
    }


def _failed(error: Exception, config: TrialConfig, context: TrialContext) -> Ending:
    status = _status(error)
    n_images = context.allowance.micro_batch or config.batch_size
    advice = _memory_advice(config, n_images) if status == "oom" else ""
    return Ending(
        status=status,
        error=f"{advice}{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )


def _memory_advice(config: TrialConfig, n_images: int) -> str:
    """Return advice if memory ran out and the batch cannot be divided further."""
    if is_baseline(config) or halved(config, n_images) is not None:
        return ""
    return (
        f"Out of memory with {n_images} image{'s' * (n_images > 1)} per forward pass, "
        f"the minimum for '{config.backbone}' at image_px {config.image_px}. "
        "Use a smaller image_px. "
    )


def _status(error: Exception) -> Status:
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, TimeUp):
        return "timeout"
    return "oom" if memory.is_shortage(error) else "error"
